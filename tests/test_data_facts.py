import json
from pathlib import Path

import numpy as np
import pytest

from finetune import data_facts, runs
from finetune.errors import InputError
from finetune.store import Store
from small_store import TWINS, store_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Training images 8 x 9, 5 x 7, 9 x 8 and 5 x 7 (one of class 1); validation 6 x 6, 4 x 9; test 3 x 3."""
    train = [(0, 8, 9), (0, 5, 7), (1, 6, 6), (1, 9, 8), (0, 5, 7), (0, 4, 9)]
    return store_of(tmp_path, {"train": train, "test": [(1, 3, 3)]}, duplicates=TWINS)


def test_images_are_counted_per_split_and_class(store: Store) -> None:
    splits = data_facts.facts(store, "Toy")["splits"]
    assert {name: split["images"] for name, split in splits.items()} == {"train": 4, "val": 2, "test": 1}
    assert splits["train"]["per_class"] == {"min": 1, "median": 2.0, "max": 3, "counts": [3, 1]}
    assert splits["test"]["per_class"]["counts"] == [0, 1]


def test_sizes_are_of_the_stored_images(store: Store) -> None:
    assert data_facts.facts(store, "Toy")["splits"]["train"]["sizes"] == {
        "distinct": 3,
        "short": {"min": 5, "median": 6.5, "max": 8},
        "long": {"min": 7, "median": 8.0, "max": 9},
    }


def test_where_images_were_shrunk_their_own_sizes_stand_below(store: Store) -> None:
    whole = np.load(store.path / "trainval.index.npy")[:, 1:].astype(np.int32)
    whole[0] = 90, 30  # of train
    np.save(store.path / "trainval.original.npy", whole)
    facts = data_facts.facts(store, "Toy")
    assert facts["splits"]["train"]["original"] == {
        "distinct": 3,
        "short": {"min": 5, "median": 6.5, "max": 30},
        "long": {"min": 7, "median": 8.0, "max": 90},
    }
    assert data_facts.split_rows(facts)[1:4] == [
        ["train", "4", "1 – 2 – 3", "5 – 6.5 – 8", "7 – 8 – 9", "3"],
        ["train, original", "", "", "5 – 6.5 – 30", "7 – 8 – 90", "3"],
        ["val", "2", "1", "4 – 5 – 6", "6 – 7.5 – 9", "2"],  # as nothing of it was shrunk
    ]
    assert "  original: before that" in data_facts.lines(facts)


def test_a_store_that_does_not_tell_original_sizes_shows_the_stored_ones(store: Store) -> None:
    for file in store.path.glob("*.original.npy"):
        file.unlink()
    facts = data_facts.facts(store, "Toy")
    assert facts["splits"]["train"]["original"] is None
    for split in facts["splits"].values():
        del split["original"]  # as in facts of an earlier version
    assert [row[0] for row in data_facts.split_rows(facts)] == ["split", "train", "val", "test"]
    assert "  original: before that" not in data_facts.lines(facts)


def test_names_that_are_not_utf8_are_shown_with_escapes(store: Store) -> None:
    facts = data_facts.facts(store, "Toy")
    facts["duplicates"] = TWINS | {"examples": [["a.tar: ant/caf\udce9.jpg", "é.jpg"]]}
    facts["classes"][0] = "caf\udce9"
    text = "\n".join(data_facts.lines(facts))
    assert r"  a.tar: ant/caf\xe9.jpg = é.jpg" in text
    assert r"  caf\xe9 " in text
    text.encode()


def test_facts_can_be_written_as_json(store: Store) -> None:
    facts = data_facts.facts(store, "Toy")
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["title"], facts["edition"], facts["digest"]) == ("Toy", "any", store.digest)
    assert facts["duplicates"] == TWINS
    assert facts["bytes"] == sum(file.stat().st_size for file in store.path.iterdir())


def test_a_split_without_images_has_no_sizes(tmp_path: Path) -> None:
    facts = data_facts.facts(store_of(tmp_path, {"train": [(0, 4, 4)], "test": [(0, 4, 4)]}), "Toy")
    assert facts["splits"]["val"]["sizes"] is None
    assert data_facts.split_rows(facts)[2] == ["val", "0", "0", "–", "–", "–"]


def test_the_text_has_a_line_for_each_class_and_split(store: Store) -> None:
    lines = [line.replace(" – ", "–").split() for line in data_facts.lines(data_facts.facts(store, "Toy"))]
    assert ["class", "0", "3", "1", "0", "4"] in lines
    assert ["class", "1", "1", "1", "1", "3"] in lines
    assert ["train", "4", "1–2–3", "5–6.5–8", "7–8–9", "3"] in lines


def test_a_fraction_is_said(store: Store) -> None:
    facts = data_facts.facts(store, "Toy", 0.7)
    assert (facts["fraction"], facts["trained_on"]) == (0.7, 3)  # 2 of 3, 1 of 1
    assert "  trainings take 3 of the training images (fraction 0.7)" in list(data_facts.lines(facts))


def test_the_text_names_duplicates(store: Store) -> None:
    assert list(data_facts.lines(data_facts.facts(store, "Toy")))[-1] == "  a.png = b.png"


def test_columns_stand_under_one_another(store: Store) -> None:
    table = [line for line in data_facts.lines(data_facts.facts(store, "Toy")) if line.startswith("  class")]
    assert len(table) == 3 and len({len(line) for line in table}) == 1


@pytest.mark.parametrize(("every", "shown"), [(False, 10), (True, 30)])
def test_of_many_classes_those_of_most_and_fewest_images_are_listed(every: bool, shown: int, tmp_path: Path) -> None:
    images = [(label, 2, 2) for label in range(30) for _ in range(1 + label % 2)]
    facts = data_facts.facts(store_of(tmp_path, {"train": images, "test": [(7, 2, 2)]}, classes=30), "Toy")
    lines = [line for line in data_facts.lines(facts, every) if line.startswith("  class ")]
    assert len(lines) == shown + 1  # with the heading
    if not every:
        assert lines[1].split()[:2] == ["class", "7"]
        assert lines[-1].split()[:2] == ["class", "28"]


def test_duplicates_are_said_split_by_split(store: Store) -> None:
    assert data_facts.duplicates({"duplicates": TWINS}) == (
        "Exact duplicates, by pixels: 3 within train, 0 within val, 1 within test; 0 of val also in train; 2 of test "
        "also in train; 0 of test also in val. 4 of the images given for validation were left out, as train has them "
        "too. Of all images 1 have a twin of another class."
    )


def test_where_there_are_no_duplicates_it_takes_one_sentence() -> None:
    none = {"within": {"train": 0, "val": 0, "test": 0}, "train/test": 0, "val/test": 0, "train/val": 0, "left_out": 0}
    assert data_facts.duplicates({"duplicates": none}) == "No exact duplicates, by pixels."
    assert data_facts.duplicates({"duplicates": none | {"val/test": 1}}).startswith("Exact duplicates, by pixels: 0 ")


def test_a_store_that_counted_no_duplicates_says_so(tmp_path: Path) -> None:
    facts = data_facts.facts(store_of(tmp_path, {"train": [(0, 4, 4)], "test": [(0, 4, 4)]}), "Toy")
    assert data_facts.duplicates(facts) == "Exact duplicates: not counted in this store."


def test_damaged_facts_name_the_stage_that_makes_them_again(tmp_path: Path) -> None:
    runs.write_text(tmp_path / "sheets" / "toy" / "facts.json", "{")
    with pytest.raises(InputError, match=r"facts\.json: not valid JSON; .*`dvc repro -f -s sheet@toy`"):
        data_facts.read(tmp_path, "toy")
