import re
from pathlib import Path
from typing import Any

import pytest

from finetune import data_facts, report_data, runs
from finetune.study import Layout
from small_store import TWINS, store_of

COMPARISON: dict[str, Any] = {
    "datasets": {
        "toy": {"title": "Toy", "images": {"train": 4, "val": 2, "test": 1}},
        "other": {"title": "Other", "images": {"train": 9, "test": 9}},
    }
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root where the facts and sheets of `toy` lie, and an empty report folder."""
    train = [(0, 8, 9), (0, 5, 7), (1, 6, 6), (1, 9, 8), (0, 5, 7), (0, 4, 9)]
    store = store_of(tmp_path, {"train": train, "test": [(1, 3, 3)]}, duplicates=TWINS)
    sheets = tmp_path / "sheets" / "toy"
    runs.write_json(sheets / data_facts.FACTS, data_facts.facts(store, "Toy"))
    for name in (data_facts.SHEET, data_facts.AUGMENTED):
        (sheets / name).write_bytes(name.encode())
    (tmp_path / "report").mkdir()
    return tmp_path


def section(root: Path) -> str:
    return report_data.section(COMPARISON, Layout(root), root / "report")


def test_the_facts_stand_in_a_table(root: Path) -> None:
    text = section(root)
    assert "| Toy | train | 4 | 1 – 2 – 3 | 5 – 6.5 – 8 | 7 – 8 – 9 | 3 |" in text
    assert "| Toy | test | 1 | 0 – 0.5 – 1 | 3 | 3 | 1 |" in text
    assert "- Toy: 2 classes, 0.0 MB as prepared. Exact duplicates, by pixels: 3 within train" in text


def test_the_sheets_are_copied_beside_the_report(root: Path) -> None:
    shown = re.findall(r"\]\((.*?)\)", section(root))
    assert shown == ["data-toy-sheet.png", "data-toy-augmented.png"]
    assert [(root / "report" / name).read_bytes() for name in shown] == [b"sheet.png", b"augmented.png"]


def test_what_nobody_looked_at_is_named_with_the_command(root: Path) -> None:
    assert "- Other: not looked at yet; `finetune data show other --augmented` makes it" in section(root)


def test_a_missing_sheet_is_named_with_the_command(root: Path) -> None:
    (root / "sheets" / "toy" / data_facts.AUGMENTED).unlink()
    text = section(root)
    assert "No picture of what the network sees of Toy; `finetune data show toy --augmented` makes it" in text
    assert "data-toy-sheet.png" in text


def test_a_fraction_is_said(root: Path) -> None:
    path = root / "sheets" / "toy" / data_facts.FACTS
    runs.write_json(path, runs.read_json(path) | {"fraction": 0.5, "trained_on": 2})
    assert "not looked at yet" in section(root).partition("- Other")[0]  # the comparison is of four
    comparison = {"datasets": {"toy": {"title": "Toy", "images": {"train": 2, "val": 2, "test": 1}}}}
    text = report_data.section(comparison, Layout(root), root / "report")
    assert "| Toy | train | 4 |" in text and "Trained on 2 of the training images." in text


def test_facts_of_another_store_with_the_same_counts_are_not_shown(root: Path) -> None:
    of_set = COMPARISON["datasets"]["toy"]
    digest = runs.read_json(root / "sheets" / "toy" / data_facts.FACTS)["digest"]
    for store, shown in ((digest, True), (None, True), ("another", False)):
        comparison = {"datasets": {"toy": of_set | {"store_digest": store}}}
        assert ("data-toy" in report_data.section(comparison, Layout(root), root / "report")) == shown


def test_original_sizes_are_shown_where_images_were_shrunk(root: Path) -> None:
    assert "original" not in section(root)
    path = root / "sheets" / "toy" / data_facts.FACTS
    facts = runs.read_json(path)
    facts["splits"]["train"]["original"]["long"] |= {"max": 3000}
    runs.write_json(path, facts)
    text = section(root)
    assert "| Toy | train, original |  |  | 5 – 6.5 – 8 | 7 – 8 – 3,000 | 3 |" in text
    assert "were shrunk to it; original: before that." in text


def test_facts_of_other_images_are_not_shown(root: Path) -> None:
    path = root / "sheets" / "toy" / data_facts.FACTS
    facts = runs.read_json(path)
    facts["splits"]["val"]["images"] = 3
    runs.write_json(path, facts)
    text = section(root)
    assert "- Toy: not looked at yet" in text and "data-toy" not in text
