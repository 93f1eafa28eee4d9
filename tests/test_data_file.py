import shutil
from pathlib import Path

import pytest
import yaml

from finetune import data_file, datasets
from finetune.errors import InputError

REPOSITORY = Path(__file__).parent.parent
ARCHIVES = {"a.tgz": "0" * 32, "b.mat": "1" * 32}


def write(root: Path, **out: object) -> None:
    (root / "data.dvc").write_text(yaml.safe_dump({"outs": [{"path": "data/toy", **out}]}))


def test_the_outs_are_listed_by_their_paths() -> None:
    found = data_file.outs(REPOSITORY)
    assert list(found) == [f"data/{name}" for name in ("cifar10", "cifar100", "cub200", "cars196", "food101")]
    assert found["data/cars196"]["nfiles"] == 4


def test_without_a_data_file_there_are_no_outs(tmp_path: Path) -> None:
    assert data_file.outs(tmp_path) == {}
    assert data_file.folder_md5(tmp_path, "toy", ARCHIVES) is None


@pytest.mark.parametrize("text", ["outs: [", "outs:\n", "[]", "", "outs: [{md5: 0}]", "outs: [data]"])
def test_a_broken_data_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.dvc").write_text(text)
    with pytest.raises(InputError, match=r"data\.dvc: found no list of outs .*git checkout data\.dvc`$"):
        data_file.outs(tmp_path)


@pytest.mark.parametrize("name", datasets.names())
def test_a_folder_of_the_sample_edition_has_the_hash_that_dvc_wrote(tmp_path: Path, name: str) -> None:
    shutil.copy(REPOSITORY / "data.dvc", tmp_path)
    expected = data_file.outs(tmp_path)[f"data/{name}"]["md5"]
    assert data_file.folder_md5(tmp_path, name, datasets.load(name).editions["sample"].md5) == expected


def test_a_data_file_of_other_archives_says_nothing_of_these(tmp_path: Path) -> None:
    write(tmp_path, md5="abc.dir", nfiles=2)
    assert data_file.folder_md5(tmp_path, "toy", ARCHIVES) is None


def test_a_folder_with_more_files_than_the_archives_is_taken_at_its_word(tmp_path: Path) -> None:
    write(tmp_path, md5="abc.dir", nfiles=3)
    assert data_file.folder_md5(tmp_path, "toy", ARCHIVES) == "abc.dir"


def test_a_folder_that_was_never_committed_has_no_hash(tmp_path: Path) -> None:
    write(tmp_path)
    assert data_file.folder_md5(tmp_path, "toy", ARCHIVES) is None
