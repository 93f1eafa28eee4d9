"""A store is kept only where it is the very one that prepare would make."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import own_images
import tiny_archives
from finetune import datasets, kept
from finetune.datasets import Contents, Dataset, Edition, class_folders
from finetune.errors import InputError
from finetune.params import PrepareParams
from finetune.prepare import prepare
from finetune.store import Store, open_store

SETTINGS = PrepareParams(short_side=16, val_fraction=0.25)
CIFAR = datasets.load("cifar10")


class Prepared:
    """A store of tiny archives."""

    def __init__(self, root: Path) -> None:
        self.archives, self.place = root / "data", root / "prepared" / "cifar10"
        tiny_archives.write("cifar10", self.archives)
        self.digest = self.prepare().digest

    def prepare(self, dataset: Dataset = CIFAR, edition: str = "any", settings: PrepareParams = SETTINGS) -> Store:
        return prepare(dataset, edition, settings, self.archives, self.place)

    def found(self, dataset: Dataset = CIFAR, edition: str = "any", settings: PrepareParams = SETTINGS) -> bool:
        return kept.find(dataset, edition, settings, self.archives, self.place) is not None


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return Prepared(tmp_path)


def test_the_same_again_keeps_the_store_without_reading_an_image(
    prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(folder: Path) -> Contents:
        raise AssertionError

    read.__code__ = read.__code__.replace(co_filename=datasets.cifar10.__file__)  # type: ignore[attr-defined]
    before = (prepared.place / "trainval.u8").stat().st_ino
    assert prepared.prepare(replace(CIFAR, read=read, title="Another")).digest == prepared.digest
    assert (prepared.place / "trainval.u8").stat().st_ino == before
    assert "kept, as archives, settings and code are those it was made with" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed", [{"short_side": 17}, {"val_fraction": 0.5}, {"split_seed": 1}], ids=lambda changed: next(iter(changed))
)
def test_other_settings_keep_nothing(changed: dict[str, float], prepared: Prepared) -> None:
    assert prepared.found()
    assert not prepared.found(settings=SETTINGS.model_copy(update=changed))


def test_another_archive_keeps_nothing_and_is_prepared(prepared: Prepared) -> None:
    tiny_archives.write("cifar10", prepared.archives, train=8)
    assert not prepared.found()
    assert prepared.prepare().digest != prepared.digest


def unread(*_: object) -> dict[str, str]:
    """Stands for what reads archives."""
    raise AssertionError


def test_an_archive_of_another_size_is_not_read_to_know_it(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_archives.write("cifar10", prepared.archives, train=8)
    monkeypatch.setattr(kept, "check_archives", unread)
    assert not prepared.found()


@pytest.mark.parametrize("form", own_images.FORMS)
def test_class_folders_of_another_size_are_not_read_to_know_it(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, place = class_folders.dataset("own"), tmp_path / "data" / form if Path(form).suffix else tmp_path / "data"

    def found() -> bool:
        return kept.find(own, "any", SETTINGS, tmp_path / "data", tmp_path / "own") is not None

    own_images.write(place, own_images.pool(8))
    prepare(own, "any", SETTINGS, tmp_path / "data", tmp_path / "own")
    (tmp_path / "data" / "notes.txt").write_text("no data of the set")
    assert found()
    own_images.write(place, own_images.pool(9))
    monkeypatch.setattr(kept, "check_archives", unread)
    assert not found()


def test_who_has_read_the_archives_tells_their_md5(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(md5: dict[str, str]) -> bool:
        return kept.find(CIFAR, "any", SETTINGS, prepared.archives, prepared.place, md5) is not None

    monkeypatch.setattr(kept, "check_archives", unread)
    md5 = open_store(prepared.place).meta["archives_md5"]
    assert found(md5)
    assert not found(dict.fromkeys(md5, "0" * 32))


def test_another_edition_of_the_same_archives_keeps_nothing(prepared: Prepared) -> None:
    md5 = open_store(prepared.place).meta["archives_md5"]
    toy = replace(CIFAR, editions={"sample": Edition(md5, train=12, test=6)})
    assert not prepared.found(toy, "sample")


def test_archives_that_are_not_the_editions_are_refused(prepared: Prepared) -> None:
    meta = prepared.place / "meta.json"
    meta.write_text(meta.read_text().replace('"edition": "any"', '"edition": "sample"'))
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz: found md5 .* of the sample edition"):
        prepared.found(edition="sample")


@pytest.mark.parametrize("name", ["trainval.u8", "test.labels.npy", "meta.json", "train.rows.npy"])
def test_a_store_that_was_changed_is_made_anew(name: str, prepared: Prepared) -> None:
    file = prepared.place / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert not prepared.found()
    assert prepared.prepare().digest == prepared.digest
    assert prepared.found()


def test_a_store_that_is_gone_is_made_anew(prepared: Prepared) -> None:
    prepared.place.rename(prepared.place.with_name("elsewhere"))
    assert not prepared.found()


def test_a_store_of_which_nothing_is_noted_is_made_anew(prepared: Prepared) -> None:
    prepared.place.with_name(".cifar10.made.json").unlink()
    assert not prepared.found()


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_damaged_note_keeps_nothing(text: str, prepared: Prepared) -> None:
    prepared.place.with_name(".cifar10.made.json").write_text(text)
    assert not prepared.found()


def test_the_note_of_another_store_keeps_nothing(prepared: Prepared, tmp_path: Path) -> None:
    note = prepared.place.with_name(".cifar10.made.json")
    before = note.read_text()
    prepared.prepare(settings=SETTINGS.model_copy(update={"split_seed": 1}))
    note.write_text(before)
    assert not prepared.found(settings=SETTINGS.model_copy(update={"split_seed": 1}))


def test_a_store_that_is_foreign_but_whole_keeps_nothing(prepared: Prepared) -> None:
    """Swapped for one of another data set that is as it was written."""
    note = prepared.place.with_name(".cifar10.made.json")
    meta = prepared.place / "meta.json"
    told = json.loads(meta.read_text()) | {"dataset": "cifar100"}
    told["seal"] = "0" * 64
    meta.write_text(json.dumps(told))
    note.write_text(json.dumps(json.loads(note.read_text()) | {"seal": "0" * 64}))
    assert not prepared.found()


@pytest.mark.parametrize("file", ["decoding.py", "images.py", "store_writer.py", "datasets/cifar10.py"])
def test_other_code_keeps_nothing(file: str, prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    edited = Path(kept.__file__).parent / file
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        return real(path) + (b"# edited\n" if path == edited else b"")

    assert prepared.found()
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert not prepared.found()


def test_another_library_keeps_nothing(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "version", lambda library: "0.0")
    assert not prepared.found()


def test_a_reader_that_is_none_of_ours_keeps_nothing(
    toy_archives: Path, make_toy: Callable[..., Dataset], tmp_path: Path
) -> None:
    prepare(make_toy(), "any", SETTINGS, toy_archives, tmp_path / "toy")
    assert kept.find(make_toy(), "any", SETTINGS, toy_archives, tmp_path / "toy") is None
    assert not (tmp_path / ".toy.made.json").exists()


def test_class_folders_are_kept_unless_their_options_change(tmp_path: Path) -> None:
    own_images.write(tmp_path / "data" / "own.tar.gz", own_images.pool(8))

    def found(**options: float) -> bool:
        dataset = class_folders.dataset("own", **options)  # type: ignore[arg-type]
        return kept.find(dataset, "any", SETTINGS, tmp_path / "data", tmp_path / "own") is not None

    prepare(class_folders.dataset("own"), "any", SETTINGS, tmp_path / "data", tmp_path / "own")
    assert found()
    assert not found(test_fraction=0.5)
    assert not found(test_seed=1)


def test_all_that_is_noted_is_what_dvc_depends_on() -> None:
    import yaml

    root = Path(__file__).parents[1]
    stage = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]["prepare"]
    deps = {dep.removeprefix("src/finetune/") for dep in stage["deps"] if dep.startswith("src/")}
    assert deps == {pattern.removesuffix("/*.py") for pattern in kept._CODE}
    assert np.all([out["prepared/${item.dataset}"]["persist"] for out in stage["outs"]])
