"""What every strategy keeps, whichever there are: each plan as it comes, and each variant of the catalogue."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from torchvision.models import MobileNetV2

from finetune import params, runs, stages, strategies, training
from finetune.batches import Batches
from finetune.checkpoint import Pace
from finetune.interruption import Interrupted
from finetune.params import TrainingParams, parse
from finetune.resolved import Prepared, resolve
from finetune.serving import Classifier
from finetune.store import Split, open_store
from finetune.strategies.plan import Phase, Plan, audit
from finetune.study import Layout, Run
from finetune.training import Listener, Progress, epochs_of, fit

EPOCHS = 4
NEVER, ALWAYS = Pace(seconds=1000), Pace(seconds=0, share=1)
CATALOGUE = yaml.safe_load((Path(__file__).parents[1] / "studies" / "catalogue.yaml").read_text())["strategies"]
PLAIN = {name: {"plan": name} for name in strategies.names() if {"plan": name} not in CATALOGUE.values()}
VARIANTS: dict[str, dict[str, Any]] = CATALOGUE | {f"{name}_as_it_comes": variant for name, variant in PLAIN.items()}


@dataclass
class Case:
    """A variant, trained on 12 images in 2 steps an epoch."""

    name: str
    variant: dict[str, Any]
    content: dict[str, Any]  # of params.yaml
    root: Path
    inputs: Path
    snapshots: list[dict[str, Tensor]] = field(default_factory=list)  # at the beginning and after each epoch
    rates: list[dict[str, tuple[float, float]]] = field(default_factory=list)  # per step: group -> rate, scale

    def prepared(self, layout: Layout) -> Prepared:
        return resolve(parse(self.content), layout, Run("toy", self.name, 1))

    @cached_property
    def resolved(self) -> Prepared:
        return self.prepared(Layout(self.root, self.inputs))

    @property
    def recipe(self) -> TrainingParams:
        return self.resolved.recipe

    def network(self) -> tuple[MobileNetV2, Plan]:
        from finetune.model import load_backbone

        model = self.resolved.model()
        plan = self.resolved.plan_of(model)
        if plan.initialisation == "pretrained":
            load_backbone(model, Layout(self.inputs).backbone)
        if plan.begin is not None:
            plan.begin(model)
        return model.to(memory_format=torch.channels_last), plan

    def run(self, area: str, *listeners: Listener, pace: Pace = NEVER, record: bool = False) -> Progress:
        torch.set_num_threads(1)
        (self.root / area).mkdir(exist_ok=True)
        model, plan = self.network()
        common: dict[str, Any] = {"name": "toy", "work": self.root / area, "fingerprint": "f", "pace": pace}
        if record:
            self.snapshots.append(copied(model))
            listeners = (*listeners, Listener(epoch=lambda row: self.snapshots.append(copied(model))))
        return fit(model, plan, self.recipe, self.batches("train", 12), self.batches("val", 6), 1,
                   listeners=listeners, **common)  # fmt: skip

    def batches(self, split: str, images: int) -> Batches:
        whole = open_store(Layout(self.inputs).store("toy")).split(split)
        part = Split(whole.pixels, whole.index[:images], whole.labels[:images])
        return Batches(part, 32, 6, torch.device("cpu"), torch.channels_last, 1.0)

    @cached_property
    def whole(self) -> Progress:
        """The run from beginning to end, with what happened on the way noted."""
        set_rates = training.set_rates

        def noted(optimizer: torch.optim.Optimizer, lr: float) -> None:
            set_rates(optimizer, lr)
            self.rates.append({g["name"]: (g["lr"] / lr if lr else 0.0, g["lr_scale"]) for g in optimizer.param_groups})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "set_rates", noted)
            return self.run("whole", record=True)

    def phases(self) -> list[tuple[int, Phase, dict[str, Tensor], dict[str, Tensor]]]:
        """Each phase's number, itself, and the network's tensors when it begins and when it ends."""
        assert self.whole
        _, plan = self.network()
        bounds = epochs_of(plan, self.recipe.epochs)
        return [(i, phase, self.snapshots[a], self.snapshots[b]) for i, (phase, a, b) in enumerate(bounds)]


@pytest.fixture(scope="module", params=VARIANTS)
def case(
    request: pytest.FixtureRequest,
    toy_inputs: Path,
    tiny_content: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    name, variant = request.param, VARIANTS[request.param]
    own = dict(variant.get("training", {}))
    own["epochs"] = min(own.get("epochs", EPOCHS), EPOCHS)
    content = {
        **tiny_content,
        "study": {**tiny_content["study"], "strategies": [name], "baseline": name, "seeds": [1]},
        "training": {**tiny_content["training"], "batch_size": 6, "lr": 1e-2, "schedule": {"name": "constant"}},
        "strategies": {name: {**variant, "training": own}},
    }
    return Case(name, variant, content, tmp_path_factory.mktemp("case"), toy_inputs)


def copied(model: MobileNetV2) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(first: Progress, second: Progress) -> bool:
    states = first.kept_state, second.kept_state
    return first.rows == second.rows and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_every_parameter_is_in_one_group_of_each_phase_and_no_group_is_empty(case: Case) -> None:
    model, plan = case.network()
    for phase in plan.phases:
        assert sorted(name for group in phase.groups for name in group.tensors) == sorted(
            dict(model.named_parameters())
        )
        assert all(group.tensors for group in phase.groups)


def test_what_the_audit_calls_frozen_stays_to_the_bit(case: Case) -> None:
    model, plan = case.network()
    rows = audit(model, plan, 1e-2, 0.0)
    for number, _, before, after in case.phases():
        frozen = [row["tensor"] for row in rows if row["phase"] == number and row["frozen"]]
        assert [name for name in frozen if not torch.equal(before[name], after[name])] == []


def test_every_group_that_is_trained_moves(case: Case) -> None:
    model, plan = case.network()
    rows = audit(model, plan, 1e-2, 0.0)
    for number, phase, before, after in case.phases():
        for group in phase.groups:
            moving = [
                row["tensor"]
                for row in rows
                if (row["phase"], row["group"], row["kind"], row["frozen"]) == (number, group.name, "parameter", False)
            ]
            if moving:
                assert any(not torch.equal(before[name], after[name]) for name in moving), group.name


def test_every_step_is_at_the_rates_of_the_plan(case: Case) -> None:
    _, plan = case.network()
    assert case.whole
    if any(phase.solve for phase in plan.phases):
        assert case.rates == [
            {group.name: (0.0, group.lr_scale) for group in plan.phases[0].groups if not group.frozen}
        ]
        return
    assert len(case.rates) == 2 * case.recipe.epochs
    for phase, first, end in epochs_of(plan, case.recipe.epochs):
        scales = {group.name: group.lr_scale for group in phase.groups}
        for step in case.rates[2 * first : 2 * end]:
            for name, (rate, scale) in step.items():
                assert rate == pytest.approx(scale)
                assert scale == scales[name] or (phase.scales is not None and 0 <= scale <= 1)


def test_the_same_run_gives_the_same_bits(case: Case) -> None:
    assert same(case.run("again"), case.whole)


def test_it_resumes_in_mid_epoch_and_at_every_change_of_phase(case: Case) -> None:
    _, plan = case.network()
    if plan.phases[0].solve:
        pytest.skip("solved at once: there is nothing between")
    starts = [first for _, first, _ in epochs_of(plan, case.recipe.epochs)]
    for at in {(2, 1), *((start + 1, 1) for start in starts)}:
        with pytest.raises(Interrupted):
            case.run(f"stopped {at}", Listener(step=_interrupted_at(at)))
        assert same(case.run(f"stopped {at}"), case.whole), at
    for start in starts[1:]:  # killed when the last epoch of a phase is saved
        with pytest.raises(KeyError):
            case.run(f"killed {start}", Listener(epoch=_killed_after(start)), pace=ALWAYS)
        assert same(case.run(f"killed {start}"), case.whole), start


def _interrupted_at(at: tuple[int, int]) -> Callable[[int, int, int], None]:
    def step(*now: int) -> None:
        if now[:2] == at:
            raise Interrupted(15)

    return step


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
