"""What every strategy keeps, whichever there are: each plan as it comes, each variant of the catalogue, and more."""

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.nn.functional import cross_entropy

from finetune import params, runs, stages, strategies
from finetune.model import BLOCKS
from finetune.serving import Classifier
from finetune.store import open_store
from finetune.study import Layout, Run
from finetune.training import Listener, epochs_of
from strategy_case import ALWAYS, CATALOGUE, SEED, Case, content_of, moved_though_frozen, same, still_though_trained

EPOCHS = 4
PLAIN = {name: {"plan": name} for name in strategies.names() if {"plan": name} not in CATALOGUE.values()}
OTHERS: dict[str, dict[str, Any]] = {
    "separate_lr_as_published": {"plan": "separate_lr", "last_blocks": 0, "deep_scale": 0.4, "decay": False},
    "separate_lr_in_tiers": {"plan": "separate_lr", "tiers": [[3, 0.6], [4, 0], [5, 0.2]]},  # 4 + 7 blocks are frozen
}
VARIANTS = CATALOGUE | OTHERS | {f"{name}_as_it_comes": variant for name, variant in PLAIN.items()}

SCHEDULE = {"name": "cosine", "warmup_epochs": 0.75}
# Of 4 epochs of 2 steps: (1 + cos(k 22.5 degrees)) / 2 at step k; the warm-up is 1.5 steps long, so 1 / 1.5 at first.
MULTIPLIERS = [2 / 3, 0.9619398, 0.8535534, 0.6913417, 0.5, 0.3086583, 0.1464466, 0.0380602]


@pytest.fixture(scope="module", params=VARIANTS)
def case(
    request: pytest.FixtureRequest,
    toy_inputs: Path,
    tiny_content: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    content = content_of(tiny_content, request.param, VARIANTS[request.param], EPOCHS, schedule=SCHEDULE)
    return Case(request.param, content, tmp_path_factory.mktemp("case"), toy_inputs)


def test_every_parameter_is_in_one_group_of_each_phase_and_no_group_is_empty(case: Case) -> None:
    model, plan = case.network()
    for phase in plan.phases:
        assert sorted(name for group in phase.groups for name in group.tensors) == sorted(
            dict(model.named_parameters())
        )
        assert all(group.tensors for group in phase.groups)


def test_what_the_audit_calls_frozen_stays_to_the_bit(case: Case) -> None:
    assert moved_though_frozen(case) == []


def test_every_group_that_is_trained_moves(case: Case) -> None:
    assert still_though_trained(case) == []


def test_every_step_is_at_the_rates_of_the_plan(case: Case) -> None:
    assert case.whole
    if any(phase.solve for phase in case.plan.phases):
        assert case.rates == []
        return
    assert len(case.rates) == len(MULTIPLIERS)
    trained = [r for r in case.audit if r["kind"] == "parameter" and not r["frozen"]]
    for number, (phase, first, end) in enumerate(epochs_of(case.plan, EPOCHS)):
        groups = {row["tensor"]: row["group"] for row in trained if row["phase"] == number}
        planned = {row["tensor"]: row["lr"] for row in trained if row["phase"] == number}
        for epoch in range(first, end):
            measured = _auto_rgn_rates(case, epoch) if phase.scales else {}
            full = {name: measured[groups[name]] if rate == "measured" else rate for name, rate in planned.items()}
            for step in (2 * epoch, 2 * epoch + 1):
                expected = {name: rate * MULTIPLIERS[step] for name, rate in full.items()}
                assert {name: group for name, (group, _) in case.rates[step].items()} == groups
                found = {name: rate for name, (_, rate) in case.rates[step].items()}
                assert found == pytest.approx(expected, rel=1e-4 if measured else 1e-6), step


def _auto_rgn_rates(case: Case, epoch: int) -> dict[str, float]:
    """Auto-RGN's rates by its formula at the schedule's highest, from the weights as they were when the epoch began."""
    assert case.resolved.plan == "surgical"
    model, _ = case.network()
    model.load_state_dict(case.snapshots[epoch])
    model.eval().requires_grad_(True)
    ratios = dict.fromkeys(BLOCKS[:-1], 0.0)
    for images, labels in case.batches("train", case.images).training(case.recipe.augmentation, SEED, epoch):
        model.zero_grad()
        cross_entropy(model(images), labels).backward()
        for block in ratios:
            members = [p.detach() for name, p in model.named_parameters() if name.startswith(f"{block}.")]
            gradients = [p.grad for name, p in model.named_parameters() if name.startswith(f"{block}.")]
            of_gradient, of_weights = (
                math.sqrt(sum(float(t.double().square().sum()) for t in tensors if t is not None))
                for tensors in (gradients, members)
            )
            ratios[block] += of_gradient / of_weights
    return {block: case.recipe.lr * ratio / max(ratios.values()) for block, ratio in ratios.items()}


def test_the_same_run_gives_the_same_bits(case: Case) -> None:
    assert same(case.run("again"), case.whole)


def test_it_resumes_in_mid_epoch_and_at_every_change_of_phase(case: Case) -> None:
    if case.plan.phases[0].solve:
        pytest.skip("solved at once: there is nothing between")
    starts = [first for _, first, _ in epochs_of(case.plan, case.recipe.epochs)]
    for at in {(2, 1), *((start + 1, 1) for start in starts)}:
        assert same(case.stopped_and_resumed(*at), case.whole), at
    for start in starts[1:]:  # killed when the last epoch of a phase is saved
        with pytest.raises(KeyError):
            case.run(f"killed {start}", Listener(epoch=_killed_after(start)), pace=ALWAYS)
        assert same(case.run(f"killed {start}"), case.whole), start


@pytest.mark.parametrize("name", ["last_layer", "lp_ft", "gradual_unfreeze"])
def test_it_resumes_where_features_are_cached(
    name: str,
    toy_inputs: Path,
    tiny_content: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The first epoch is of the head alone, on cached features; the second is too, or begins the phase after it.
    content = content_of(tiny_content, name, CATALOGUE[name], EPOCHS, augmentation={"name": "none"})
    case = Case(name, content, tmp_path, toy_inputs, copies=True)
    assert case.whole
    assert "features of 18 images are cached" in capsys.readouterr().out
    for at in ((1, 1), (2, 1)):
        assert same(case.stopped_and_resumed(*at), case.whole), at


def _killed_after(epoch: int) -> Callable[[Any], None]:
    def told(row: Any) -> None:
        if row["epoch"] == epoch:
            raise KeyError

    return told


def test_it_is_written_evaluated_and_served_with_the_same_answers(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    layout = Layout(tmp_path, case.inputs)
    place = stages.train(case.prepared(layout), layout)
    stages.evaluate(layout, Run("toy", case.name, 1))
    with (layout.evaluation(Run("toy", case.name, 1)) / runs.PREDICTIONS).open(newline="") as file:
        expected = [(int(row["prediction"]), float(row["confidence"])) for row in csv.DictReader(file)]
    test = open_store(layout.store("toy")).split("test")
    answers = Classifier(place).probabilities([_png(test.image(i)) for i in range(len(test))])
    assert answers.argmax(1).tolist() == [prediction for prediction, _ in expected]
    assert answers.max(1) == pytest.approx([confidence for _, confidence in expected], abs=2e-5)
    cost = runs.read(place).cost
    assert 0 < cost["trainable_parameters"] <= cost["total_parameters"]
    assert cost["activation_bytes"] > 0


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_the_catalogue_names_every_plan() -> None:
    assert {variant["plan"] for variant in CATALOGUE.values()} == set(strategies.names())


def test_the_catalogue_can_be_read() -> None:
    read = params.load(Path(__file__).parents[1] / "studies" / "catalogue.yaml")
    assert set(read.study.strategies) == set(CATALOGUE)
