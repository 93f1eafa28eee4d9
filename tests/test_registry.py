from pathlib import Path
from typing import Any

import pytest

from finetune import registry, runs, tracking
from finetune.errors import InputError
from finetune.serving import Classifier
from finetune.study import Layout, Run
from finetune.tracking_store import connect
from tracked_study import image_file, make_params, move_home, write_run, write_study

PARAMS = make_params()  # same_lr and from_scratch, seed 0
FIRST, SECOND = Run("toy", "same_lr", 0), Run("toy", "from_scratch", 0)


def silent(_: str) -> None:
    pass


def comparison(winner: Run | None, key: str = "") -> dict[str, Any]:
    """What register reads of a comparison."""
    if winner is None:
        return {"datasets": {"toy": {"winner": None}}}
    key = key or f"key-{winner.strategy}-{winner.seed}"
    return {"datasets": {"toy": {"winner": {"strategy": winner.strategy, "seed": winner.seed, "run_key": key}}}}


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    return write_study(move_home(monkeypatch, tmp_path), PARAMS)


@pytest.fixture
def tracked(layout: Layout) -> Layout:
    tracking.track(PARAMS, layout, silent)
    return layout


def versions(layout: Layout) -> list[str]:
    client, _ = connect(layout.root)
    return sorted(str(v.version) for v in client.search_model_versions("name = 'toy-classifier'"))


def champion_version(layout: Layout) -> str:
    client, _ = connect(layout.root)
    return str(client.get_model_version_by_alias("toy-classifier", "champion").version)


def test_the_winner_becomes_the_champion_with_its_lineage(tracked: Layout) -> None:
    assert registry.register(comparison(FIRST), tracked, PARAMS, silent) == {"toy": "1"}
    client, _ = connect(tracked.root)
    version = client.get_model_version_by_alias("toy-classifier", "champion")
    assert version.tags == {
        "git_commit": "a" * 40,
        "data_md5": "c58f30108f718f92721af3b95e74349a",
        "run_key": "key-same_lr-0",
        "strategy": "same_lr",
        "seed": "0",
        "val_acc": "0.3",
        "test_acc": str(4 / 6),
    }
    assert client.get_run(version.run_id).info.run_name == "toy/same_lr/0"


def test_again_adds_nothing(tracked: Layout) -> None:
    registry.register(comparison(FIRST), tracked, PARAMS, silent)
    said: list[str] = []
    assert registry.register(comparison(FIRST), tracked, PARAMS, said.append) == {"toy": "1"}
    assert versions(tracked) == ["1"]
    assert said == ["toy-classifier version 1 is toy/same_lr/0, @champion (already registered)"]


def test_another_winner_takes_the_alias_and_the_first_gets_it_back_without_a_new_version(tracked: Layout) -> None:
    registry.register(comparison(FIRST), tracked, PARAMS, silent)
    registry.register(comparison(SECOND), tracked, PARAMS, silent)
    assert champion_version(tracked) == "2"
    registry.register(comparison(FIRST), tracked, PARAMS, silent)
    assert champion_version(tracked) == "1"
    assert versions(tracked) == ["1", "2"]


def test_without_a_winner_there_is_nothing_to_register(tracked: Layout) -> None:
    with pytest.raises(InputError, match=r"no winner to register for toy: .* no validation split"):
        registry.register(comparison(None), tracked, PARAMS, silent)


def test_a_data_set_without_a_winner_does_not_stop_the_others(tracked: Layout) -> None:
    params = PARAMS.model_copy(update={"study": PARAMS.study.model_copy(update={"datasets": ["other", "toy"]})})
    compared = {"datasets": {"other": {"winner": None}, **comparison(FIRST)["datasets"]}}
    said: list[str] = []
    assert registry.register(compared, tracked, params, said.append) == {"toy": "1"}
    assert said[-1] == "other: nothing to register, without a validation split there is no winner"


def test_a_comparison_that_lacks_a_data_set_is_refused_before_anything_is_registered(tracked: Layout) -> None:
    lacking = {"datasets": {"cub200": comparison(FIRST)["datasets"]["toy"]}}
    with pytest.raises(InputError, match=r"^the comparison has no toy; make it with `dvc repro`$"):
        registry.register(lacking, tracked, PARAMS, silent)
    assert versions(tracked) == []


def test_a_winner_that_is_not_tracked_says_what_to_do(layout: Layout) -> None:
    with pytest.raises(InputError, match=r"^toy/same_lr/0 \(run_key key-same_lr-0\): .*`finetune track` first"):
        registry.register(comparison(FIRST), layout, PARAMS, silent)


def test_an_outdated_comparison_is_refused(tracked: Layout) -> None:
    write_run(tracked.root, PARAMS, FIRST, key="retrained")
    with pytest.raises(InputError, match=r"its winner toy/same_lr/0 is run key-same_lr-0, but .* holds retrained"):
        registry.register(comparison(FIRST), tracked, PARAMS, silent)


def test_the_champion_predicts_as_the_run_does(tracked: Layout) -> None:
    registry.register(comparison(SECOND), tracked, PARAMS, silent)
    found = registry.champion("toy")
    assert (found.name, found.version) == ("toy-classifier", "1")
    assert found.classifier.run_key == "key-from_scratch-0"
    own = Classifier(tracked.run(SECOND))
    assert found.classifier.predict([image_file()], top=3) == own.predict([image_file()], top=3)


def test_other_aliases_can_be_looked_up(tracked: Layout) -> None:
    registry.register(comparison(FIRST), tracked, PARAMS, silent)
    client, _ = connect(tracked.root)
    client.set_registered_model_alias("toy-classifier", "last-week", "1")
    assert registry.champion("toy", "last-week").version == "1"


def test_an_unknown_alias_lists_what_is_registered(tracked: Layout) -> None:
    registry.register(comparison(FIRST), tracked, PARAMS, silent)
    with pytest.raises(InputError, match=r"toy-classifier@best: .*registered: toy-classifier \(champion\);"):
        registry.champion("toy", "best")


def test_an_empty_registry_says_so(layout: Layout) -> None:
    with pytest.raises(InputError, match=r"cub200-classifier@champion: .*registered: nothing;"):
        registry.champion("cub200")


def test_a_champion_whose_files_are_gone_is_one_sentence(tracked: Layout) -> None:
    registry.register(comparison(FIRST), tracked, PARAMS, silent)
    for weights in (tracked.root / "mlartifacts").rglob(runs.MODEL):
        weights.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        registry.champion("toy")
