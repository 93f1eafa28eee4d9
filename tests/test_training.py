"""The training loop: what moves and what does not, at which rates, and the same bits whenever it is run again."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchvision.models import MobileNetV2

from finetune import checkpoint, kernel_library, training
from finetune.batches import Batches
from finetune.checkpoint import Pace
from finetune.device import change_layers
from finetune.errors import InputError
from finetune.evaluation import Predictions
from finetune.interruption import Interrupted
from finetune.model import build
from finetune.optimizers import make_optimizer, set_rates
from finetune.params import AugmentationParams, OptimizerParams, ScheduleParams, TrainingParams
from finetune.state import Part, State, peak_memory
from finetune.step import Step
from finetune.store import Split, open_store
from finetune.strategies import build_plan
from finetune.strategies.plan import Autocast, Group, Penalty, Phase, Plan, batchnorm_layers, feature_blocks, tensors_of
from finetune.study import Layout
from finetune.training import Listener, Progress, Row, epochs_of, fit, train_epoch
from signalled import ended_by_a_signal, terminated

RECIPE = TrainingParams(
    image_size=32,
    epochs=2,
    batch_size=6,
    lr=1e-3,
    crop_pct=1.0,
    augmentation=AugmentationParams(name="pad_crop"),
    threads=1,
    device="cpu",
)
Work = Callable[..., Progress]
ALWAYS = Pace(seconds=0, share=1)  # a checkpoint after every step and epoch
NEVER = Pace(seconds=1000)


class Killed(Exception):
    """Stands for a process that ends between two epochs."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def batches(inputs: Path, name: str, images: int, batch_size: int, size: int = 32) -> Batches:
    """The first `images` of a split."""
    whole = open_store(Layout(inputs).store("toy")).split(name)
    split = Split(whole.pixels, whole.index[:images], whole.labels[:images])
    return Batches(split, size, batch_size, torch.device("cpu"), torch.channels_last, 1.0)


@pytest.fixture
def toy(toy_inputs: Path) -> tuple[Batches, Batches]:
    """12 training images in 2 steps, 6 validation images."""
    return batches(toy_inputs, "train", 12, 6), batches(toy_inputs, "val", 6, 6)


@pytest.fixture
def work(tmp_path: Path, toy: tuple[Batches, Batches]) -> Work:
    """Trains the toy in a work area of the test's own; every call begins with the same fresh network."""

    def run(
        plan: Plan | None = None,
        recipe: TrainingParams = RECIPE,
        *,
        model: MobileNetV2 | None = None,
        validate: bool = True,
        seed: int = 3,
        fingerprint: str = "f",
        area: str = "work",
        **options: Any,
    ) -> Progress:
        (tmp_path / area).mkdir(exist_ok=True)
        model = network() if model is None else model
        return fit(
            model,
            plan or build_plan(model, "same_lr", {}),
            recipe,
            toy[0],
            toy[1] if validate else None,
            seed,
            name="toy/same_lr/3",
            work=tmp_path / area,
            fingerprint=fingerprint,
            **options,
        )

    return run


def network() -> MobileNetV2:
    return build(3, seed=3).to(memory_format=torch.channels_last)


def recipe(**changes: Any) -> TrainingParams:
    return RECIPE.model_copy(update=changes)


def copied(model: MobileNetV2) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(before: dict[str, Tensor], model: MobileNetV2) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}


def head_and_body(model: MobileNetV2, **body: Any) -> Plan:
    groups = (
        Group("head", tensors_of(model, ["classifier"])),
        Group("body", tensors_of(model, feature_blocks()), **body),
    )
    return Plan("pretrained", (Phase(groups),))


def head_then_all(model: MobileNetV2) -> Plan:
    """Two phases: the head alone, then everything."""
    frozen = head_and_body(model, frozen=True, batchnorm="eval").phases[0].groups
    return Plan("pretrained", (Phase(frozen, 0.5), Phase((Group("all", tuple(dict(model.named_parameters()))),), 0.5)))


def same(first: Progress, second: Progress) -> bool:
    """Rows and kept weights, bit for bit."""
    states = first.kept_state, second.kept_state
    return (
        first.rows == second.rows
        and first.kept == second.kept
        and list(states[0]) == list(states[1])
        and all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    )


def entered(function: Callable[[MobileNetV2], Tensor]) -> Callable[[MobileNetV2], AbstractContextManager[Penalty]]:
    """A phase's penalty that is a function of the network as it is."""

    @contextmanager
    def enter(model: MobileNetV2) -> Iterator[Penalty]:
        yield lambda images: function(model)

    return enter


# Learning


def test_the_loss_of_something_learnable_goes_down(toy_inputs: Path, tmp_path: Path) -> None:
    model = network()
    rows = fit(
        model,
        build_plan(model, "same_lr", {}),
        recipe(lr=3e-3, epochs=6, augmentation=AugmentationParams(name="none")),
        batches(toy_inputs, "train", 27, 14),
        batches(toy_inputs, "val", 9, 9),
        3,
        name="toy/same_lr/3",
        work=tmp_path,
        fingerprint="f",
    ).rows
    losses = [float(row["train/loss"] or 0) for row in rows]
    assert losses[0] == pytest.approx(math.log(3), rel=0.4)  # three classes, nothing known
    assert losses[-1] < 0.5 * losses[0]


def test_a_row_has_the_columns_of_the_curves(work: Work) -> None:
    plan = build_plan(network(), "separate_lr", {})
    rows = work(plan).rows
    columns = ["epoch", "train/loss", "train/acc", "val/loss", "val/acc", "lr/head", "lr/last", "lr/deep"]
    assert [list(row) for row in rows] == [columns] * 2
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(0 <= float(row[key] or 0) <= 1 for row in rows for key in ("train/acc", "val/acc"))


def test_without_validation_its_columns_are_empty_and_the_last_epoch_is_kept(work: Work) -> None:
    result = work(recipe=recipe(selection="last"), validate=False)
    assert [(row["val/loss"], row["val/acc"]) for row in result.rows] == [(None, None)] * 2
    assert result.kept == 2


def test_loss_and_accuracy_are_means_over_images_not_over_batches(toy_inputs: Path) -> None:
    # Batches of 20 and 7. Nothing moves at a vanishing rate, and without dropout both passes see the same.
    train = batches(toy_inputs, "train", 27, 20)
    model = network()
    model.classifier[0].p = 0.0
    with torch.no_grad():
        model.classifier[1].weight *= 1e6  # far apart, so that no rounding decides between classes
    plan = head_and_body(model, frozen=True, batchnorm="eval")
    still = recipe(lr=1e-12, weight_decay=0.0, augmentation=AugmentationParams(name="none"))
    optimizer = make_optimizer(model, plan.phases[0], still)
    row = train_epoch(Step(model, plan.phases[0], optimizer, still), train, 0, 0, "toy")
    seen = training.predict(model, train, "fp32")
    assert row["train/loss"] == pytest.approx(seen.loss, rel=1e-4)
    assert row["train/acc"] == pytest.approx(seen.acc)


def test_in_bf16_the_forward_pass_is_rounded_and_the_kept_weights_are_fp32(work: Work) -> None:
    rounded, exact = work(recipe=recipe(precision="bf16"), area="bf16"), work(area="fp32")
    assert rounded.rows[0]["train/loss"] != exact.rows[0]["train/loss"]
    assert rounded.rows[0]["train/loss"] == pytest.approx(exact.rows[0]["train/loss"], rel=0.25)
    assert {tensor.dtype for tensor in rounded.kept_state.values()} == {torch.float32, torch.int64}


# What moves


def test_under_one_group_every_parameter_and_statistic_moves(work: Work) -> None:
    model = network()
    before = copied(model)
    work(model=model)
    assert moved(before, model) == set(before)


def test_a_frozen_group_keeps_its_parameters_and_statistics_bit_for_bit(work: Work) -> None:
    model = network()
    before = copied(model)
    work(head_and_body(model, frozen=True, batchnorm="eval"), model=model)
    assert moved(before, model) == {"classifier.1.weight", "classifier.1.bias"}


def test_the_seconds_of_checkpoints_are_those_of_saving(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = []

    def slow(*_: Any) -> None:
        time.sleep(0.2)
        saves.append(None)

    monkeypatch.setattr(checkpoint, "save", slow)
    seconds = work(pace=Pace(seconds=0, share=1)).phase_seconds
    assert saves
    assert 0.2 * len(saves) <= seconds["saving"] < 0.2 * len(saves) + 0.5


def test_under_eval_batchnorm_is_left_alone_and_the_rest_moves(work: Work) -> None:
    model = network()
    before = copied(model)
    work(head_and_body(model, batchnorm="eval"), model=model)
    batchnorm = {f"{layer}.{part}" for layer in batchnorm_layers(model) for part in ("weight", "bias")}
    assert moved(before, model) == {name for name, _ in model.named_parameters()} - batchnorm


def test_under_affine_only_batchnorms_statistics_alone_are_left(work: Work) -> None:
    model = network()
    before = copied(model)
    work(head_and_body(model, batchnorm="affine_only"), model=model)
    assert moved(before, model) == {name for name, _ in model.named_parameters()}


def test_a_group_without_decay_is_not_decayed(work: Work) -> None:
    # Decay of 1e6 outweighs every gradient: Adam's first step takes lr off each weight, towards zero.
    model = network()
    head = tensors_of(model, ["classifier"])
    plan = Plan(
        "pretrained",
        (
            Phase(
                (
                    Group("weight", head[:1], decay=True),
                    Group("bias", head[1:], decay=False),
                    Group("body", tensors_of(model, feature_blocks()), frozen=True, batchnorm="eval"),
                )
            ),
        ),
    )
    optimizer = make_optimizer(model, plan.phases[0], recipe(weight_decay=1e6))
    assert {group["name"]: group["weight_decay"] for group in optimizer.param_groups} == {"weight": 1e6, "bias": 0.0}


def test_the_optimizer_is_adam_with_decay_in_the_gradient() -> None:
    model = network()
    optimizer = make_optimizer(model, head_and_body(model).phases[0], RECIPE)
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert not optimizer.defaults["decoupled_weight_decay"]


# Rates


def test_rates_are_the_groups_scale_times_the_schedule(work: Work) -> None:
    plan = build_plan(network(), "separate_lr", {})
    rows = work(plan, recipe(lr=0.01, epochs=3, schedule=ScheduleParams(name="exponential", gamma=0.5))).rows
    assert [row["lr/head"] for row in rows] == pytest.approx([0.01, 0.005, 0.0025])
    assert [row["lr/last"] for row in rows] == pytest.approx([0.006, 0.003, 0.0015])
    assert [row["lr/deep"] for row in rows] == pytest.approx([0.004, 0.002, 0.001])


def test_a_cosine_falls_over_all_steps_of_the_run(work: Work) -> None:
    rows = work(recipe=recipe(lr=1e-3, schedule=ScheduleParams(name="cosine"))).rows
    # The last of 2 steps in each of 2 epochs: progress 1/4 and 3/4.
    half = math.sqrt(0.5) / 2
    assert [row["lr/all"] for row in rows] == pytest.approx([1e-3 * (0.5 + half), 1e-3 * (0.5 - half)])


def test_a_frozen_group_has_rate_zero_in_the_curves(work: Work) -> None:
    model = network()
    rows = work(head_and_body(model, frozen=True, batchnorm="eval"), model=model).rows
    assert [row["lr/body"] for row in rows] == [0.0, 0.0]


def test_twice_the_scale_moves_twice_as_far() -> None:
    # Adam's first step is lr times the gradient's sign, whatever its size.
    def first_step(scale: float) -> Tensor:
        model = network()
        plan = head_and_body(model, lr_scale=scale)
        optimizer = make_optimizer(model, plan.phases[0], recipe(weight_decay=0.0))
        before = copied(model)["features.0.0.weight"]
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        set_rates(optimizer, 1e-3)
        optimizer.step()
        return before - model.state_dict()["features.0.0.weight"]

    assert first_step(1.0).mean().item() == pytest.approx(1e-3, rel=1e-3)
    assert first_step(2.0).mean().item() == pytest.approx(2e-3, rel=1e-3)


# Phases


def test_phases_divide_the_epochs_by_their_shares() -> None:
    phases = tuple(Phase((), share) for share in (0.25, 0.5, 0.25))
    assert [(first, end) for _, first, end in epochs_of(Plan("pretrained", phases), 8)] == [(0, 2), (2, 6), (6, 8)]


def test_shares_are_rounded_to_the_nearest_epoch() -> None:
    # Of 4 epochs, phases of a third each end at 1.33, 2.67 and 4.
    phases = tuple(Phase((), 1 / 3) for _ in range(3))
    assert [(first, end) for _, first, end in epochs_of(Plan("pretrained", phases), 4)] == [(0, 1), (1, 3), (3, 4)]


def test_every_epoch_is_in_one_phase_whatever_the_rounding() -> None:
    phases = tuple(Phase((), 1 / 3) for _ in range(3))
    for epochs in range(1, 20):
        spans = epochs_of(Plan("pretrained", phases), epochs)
        assert [epoch for _, first, end in spans for epoch in range(first, end)] == list(range(epochs))


def test_the_second_phase_trains_what_the_first_left_alone(work: Work) -> None:
    model = network()
    before = copied(model)
    states: list[set[str]] = []
    listener = Listener(epoch=lambda row: states.append(moved(before, model)))
    rows = work(head_then_all(model), model=model, listeners=(listener,)).rows
    assert states[0] == {"classifier.1.weight", "classifier.1.bias"}
    assert states[1] == set(before)
    assert [(row["lr/head"] != 0, row["lr/all"] != 0) for row in rows] == [(True, False), (False, True)]


# The penalty


def test_a_penaltys_gradient_is_added_to_the_losss(toy_inputs: Path) -> None:
    # Plain gradient descent at rate 1 for one step: the weights differ by the penalty's gradient, here 3 w.
    one_step = batches(toy_inputs, "train", 12, 12)

    def head_after_a_step(penalty: Callable[[MobileNetV2], Tensor] | None) -> tuple[Tensor, Tensor, Row]:
        model = network()
        phase = Phase(head_and_body(model).phases[0].groups, penalty=entered(penalty) if penalty else None)
        optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr_scale": 1.0}], lr=1.0)
        before = copied(model)["classifier.1.weight"]
        with phase.penalty(model) if phase.penalty else nullcontext() as added:
            step = Step(model, phase, optimizer, recipe(lr=1.0), penalty=added)
            row = train_epoch(step, one_step, 0, 0, "toy")
        return before, model.state_dict()["classifier.1.weight"], row

    weight, plain, row = head_after_a_step(None)
    _, penalised, penalised_row = head_after_a_step(lambda model: 1.5 * model.classifier[1].weight.square().sum())
    assert torch.allclose(plain - penalised, 3 * weight, atol=1e-6)
    added = penalised_row["train/loss"] - row["train/loss"]  # type: ignore[operator]
    assert added == pytest.approx(1.5 * weight.square().sum().item(), rel=1e-4)


# Selection


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: list[float], losses: list[float]) -> None:
    """Validation says, epoch by epoch, what is listed."""
    script = iter(zip(accuracies, losses, strict=True))

    def predict(*args: Any) -> Predictions:
        accuracy, loss = next(script)
        hits = np.arange(100) < round(100 * accuracy)
        zeros = np.zeros(100, np.int64)
        return Predictions(zeros, np.where(hits, 0, 1), np.ones(100), np.ones(100, bool), np.full(100, loss))

    monkeypatch.setattr(training, "predict", predict)


@pytest.mark.parametrize(
    ("accuracies", "losses", "best"),
    [
        ([0.5, 0.9, 0.2], [1.0, 1.0, 1.0], 2),
        ([0.5, 0.4, 0.3], [3.0, 2.0, 1.0], 1),  # accuracy decides, not the loss
        ([0.5, 0.9, 0.9], [1.0, 1.0, 0.5], 3),  # ties: the lower loss
        ([0.9, 0.9, 0.9], [1.0, 1.0, 1.0], 1),  # then the earlier epoch
    ],
)
def test_the_best_epoch_by_validation_is_kept(
    work: Work, monkeypatch: pytest.MonkeyPatch, accuracies: list[float], losses: list[float], best: int
) -> None:
    scripted(monkeypatch, accuracies, losses)
    model = network()
    states: list[dict[str, Tensor]] = []
    result = work(
        model=model, recipe=recipe(epochs=3), listeners=(Listener(epoch=lambda row: states.append(copied(model))),)
    )
    assert result.kept == best
    assert all(torch.equal(result.kept_state[name], tensor) for name, tensor in states[best - 1].items())


def test_the_last_epoch_is_kept_where_that_is_asked_for(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.9, 0.1, 0.2], [1.0, 1.0, 1.0])
    model = network()
    result = work(model=model, recipe=recipe(epochs=3, selection="last"))
    assert result.kept == 3
    assert all(torch.equal(result.kept_state[name], tensor) for name, tensor in model.state_dict().items())


# The same bits


def test_the_same_run_gives_the_same_bits(work: Work) -> None:
    assert same(work(area="one"), work(area="two"))


def test_another_seed_gives_other_numbers(work: Work) -> None:
    assert work(area="one", seed=3).rows != work(area="two", seed=4).rows


def test_what_was_drawn_before_does_not_matter(work: Work) -> None:
    first = work(area="one")
    torch.rand(100)
    np.random.rand(100)
    assert same(first, work(area="two"))


def killed_after(epoch: int) -> Listener:
    def stop(row: Row) -> None:
        if row["epoch"] == epoch:
            raise Killed

    return Listener(epoch=stop)


def resumed_run(work: Work, plan: Plan, recipe: TrainingParams, killed: tuple[int, ...]) -> tuple[Progress, list[int]]:
    """A run killed after each epoch of `killed`, and how many epochs each later attempt found done."""
    found: list[int] = []
    for epoch in killed:
        with pytest.raises(Killed):
            work(plan, recipe, area="killed", listeners=(killed_after(epoch),), pace=ALWAYS)
    noted = Listener(resumed=lambda rows, _: found.append(len(rows)))
    return work(plan, recipe, area="killed", listeners=(noted,), pace=ALWAYS), found


@pytest.mark.parametrize("killed", [(1,), (2,), (1, 2)])
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(work: Work, killed: tuple[int, ...]) -> None:
    plan, three = build_plan(network(), "separate_lr", {}), recipe(epochs=3)
    result, found = resumed_run(work, plan, three, killed)
    assert found == [killed[-1]]
    assert same(result, work(plan, three, area="whole"))


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_a_run_of_two_phases_resumes_in_either_and_between_them(work: Work, killed: int) -> None:
    plan, four = head_then_all(network()), recipe(epochs=4)
    result, found = resumed_run(work, plan, four, (killed,))
    assert found == [killed]
    assert same(result, work(plan, four, area="whole"))


def stopped_at(epoch: int, step: int, error: BaseException) -> Listener:
    def stop(*at: int) -> None:
        if at[:2] == (epoch, step):
            raise error

    return Listener(step=stop)


@pytest.mark.parametrize("at", [(1, 1), (1, 2), (2, 1), (3, 2), (4, 1), (4, 2)])
@pytest.mark.parametrize("penalised", [False, True])
def test_a_run_resumes_between_any_two_steps(work: Work, at: tuple[int, int], penalised: bool) -> None:
    # The listener comes before the saver, so a kill loses its step; a signal saves it.
    plan, four = head_then_all(network()), recipe(epochs=4)
    if penalised:
        square = lambda model: 1e-3 * model.classifier[1].weight.square().sum()  # noqa: E731
        plan = Plan(plan.initialisation, tuple(Phase(p.groups, p.share, entered(square)) for p in plan.phases))
    with pytest.raises(Killed):
        work(plan, four, area="killed", listeners=(stopped_at(*at, Killed()),), pace=ALWAYS)
    with pytest.raises(Interrupted):
        work(plan, four, area="stopped", listeners=(stopped_at(*at, Interrupted(15)),), pace=NEVER)
    found: list[tuple[int, int]] = []
    noted = Listener(resumed=lambda rows, steps: found.append((len(rows), steps)))
    results = [work(plan, four, area=area, listeners=(noted,)) for area in ("killed", "stopped", "whole")]
    assert found[-1] == (at[0] - 1, at[1])
    assert same(results[0], results[2])
    assert same(results[1], results[2])


# What a recipe may add to any strategy
ADDED: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": OptimizerParams(name="sgd")},
    "adamw": {"optimizer": OptimizerParams(name="adamw")},
    "accumulation": {"accumulation": 2, "batch_size": 4},
    "mixup and cutmix": {"mixup": 0.8, "cutmix": 1.0},
    "smoothing": {"label_smoothing": 0.1},
    "averaged weights": {"ema": 0.9},
    "checkpointing": {"activation_checkpointing": True},
    "a lean backward pass": {"lean_backward": True},
    **({"this project's kernels": {"cpu_kernels": "native"}} if kernel_library.available() else {}),
    "warm-up and steps": {"schedule": ScheduleParams(name="step", every=2, gamma=0.1, warmup_epochs=1.5)},
}


BIT_BY_BIT = ("checkpointing", "a lean backward pass")


@pytest.mark.parametrize("option", ADDED)
def test_whatever_is_added_a_run_resumes_between_two_steps(toy_inputs: Path, tmp_path: Path, option: str) -> None:
    own = recipe(epochs=4, **ADDED[option])
    train, val = batches(toy_inputs, "train", 12, own.batch_size), batches(toy_inputs, "val", 6, 6)

    def run(area: str, *listeners: Listener) -> Progress:
        (tmp_path / area).mkdir(exist_ok=True)
        model = network()
        change_layers(model, own)
        plan = head_then_all(model)
        common: dict[str, Any] = {"name": "toy", "work": tmp_path / area, "fingerprint": "f", "pace": NEVER}
        return fit(model, plan, own, train, val, 3, listeners=listeners, **common)

    whole = run("whole")
    for at in ((1, 1), (3, 1)):
        with pytest.raises(Interrupted):
            run(f"stopped {at}", Listener(step=lambda *now, at=at: interrupted() if now[:2] == at else None))
        assert same(run(f"stopped {at}"), whole)
    assert not same(whole, plain(toy_inputs, tmp_path, own)) or option in BIT_BY_BIT


def plain(inputs: Path, folder: Path, own: TrainingParams) -> Progress:
    """The same run with nothing added."""
    (folder / "plain").mkdir()
    train, val = batches(inputs, "train", 12, 6), batches(inputs, "val", 6, 6)
    model = network()
    common: dict[str, Any] = {"name": "toy", "work": folder / "plain", "fingerprint": "f", "pace": NEVER}
    return fit(model, head_then_all(model), recipe(epochs=4), train, val, 3, **common)


def test_where_weights_are_averaged_the_network_goes_on_from_its_own(work: Work) -> None:
    averaged, own = work(recipe=recipe(ema=0.999, selection="last"), area="averaged"), work(area="own")
    assert [row["train/loss"] for row in averaged.rows] == [row["train/loss"] for row in own.rows]


def test_scales_are_measured_when_an_epoch_begins_and_stay_for_the_rest_of_it(work: Work) -> None:
    measured: list[int] = []

    def scales(
        model: MobileNetV2, batches: Iterator[tuple[Tensor, Tensor]], at_precision: Autocast
    ) -> Mapping[str, float]:
        assert not model.training
        assert not torch.is_autocast_enabled("cpu")
        with at_precision():
            assert torch.is_autocast_enabled("cpu")
        measured.append(len(next(batches)[1]))
        return {"body": 1 / (1 + len(measured))}

    (phase,) = head_and_body(network()).phases
    plan = Plan("pretrained", (replace(phase, scales=scales),))
    constant = recipe(schedule=ScheduleParams(name="constant"), precision="bf16")
    with pytest.raises(Interrupted):
        work(plan, constant, listeners=(stopped_at(2, 1, Interrupted(15)),), pace=NEVER)
    rows = work(plan, constant).rows
    assert measured == [6, 6]  # the second attempt goes on in the second epoch and measures nothing
    assert [row["lr/body"] for row in rows] == pytest.approx([1e-3 / 2, 1e-3 / 3])
    assert [row["lr/head"] for row in rows] == pytest.approx([1e-3, 1e-3])


def test_an_interruption_while_validating_keeps_the_epochs_training(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = work(area="whole")
    with monkeypatch.context() as patch:
        patch.setattr(training, "predict", interrupted)
        with pytest.raises(Interrupted):
            work(pace=NEVER)
    assert same(work(listeners=(Listener(step=lambda epoch, *_: no_more_of(epoch, 1)),)), whole)


def interrupted(*_: Any) -> Predictions:
    raise Interrupted(15)


class Halfway:
    """Stands for the loading of a part's tensors; sends the signal as the nth copy of a network gets to that part."""

    def __init__(self, model: MobileNetV2, copy: int) -> None:
        self.part = model.features[9]
        self.load, self.copy, self.copies = self.part._load_from_state_dict, copy, 0
        self.part._load_from_state_dict = self

    def __call__(self, *given: Any) -> None:
        self.copies += 1
        if self.copies == self.copy:
            terminated()
        self.load(*given)


@pytest.mark.parametrize("moment", [1, "between", 2, 3, 4], ids=str)
def test_a_signal_as_averaged_weights_are_put_in_place_and_back_changes_nothing(
    work: Work, monkeypatch: pytest.MonkeyPatch, moment: int | str
) -> None:
    # Two copies after each of the two epochs: there and back. The signal comes within one of them, or in between.
    averaged, model = recipe(ema=0.9), network()
    whole = work(recipe=averaged, area="whole")
    with monkeypatch.context() as patch, ended_by_a_signal():
        if moment == "between":
            patch.setattr(training, "predict", terminated)
        else:
            Halfway(model, int(moment))
        work(recipe=averaged, model=model, pace=NEVER)
    epochs = 2 if moment in (3, 4) else 1
    again = work(recipe=averaged, listeners=(Listener(step=lambda epoch, *_: no_more_of(epoch, epochs)),))
    assert same(again, whole)


def test_a_signal_within_a_step_waits_for_its_end(work: Work) -> None:
    whole, steps = work(area="whole"), count(1)

    def between_backward_and_update(*_: Any) -> None:
        if next(steps) == 2:
            terminated()

    hook = register_optimizer_step_pre_hook(between_backward_and_update)
    try:
        with ended_by_a_signal():
            work(pace=NEVER)
    finally:
        hook.remove()
    assert next(steps) == 3, "the step was ended, and no other begun"
    assert same(work(), whole)


def test_a_signal_as_an_epochs_numbers_are_noted_waits_for_the_weights_to_be_kept(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = recipe(selection="last")
    whole = work(recipe=last, area="whole")

    class Interrupting(Part):
        def __init__(self, *given: Any) -> None:
            if not given:
                terminated()
            super().__init__(*given)

    def in_the_midst(state: State, row: Row, selection: str) -> None:
        with monkeypatch.context() as within:
            within.setattr("finetune.state.Part", Interrupting)
            end_epoch(state, row, selection)

    end_epoch = State.end_epoch
    with monkeypatch.context() as patch, ended_by_a_signal():
        patch.setattr(State, "end_epoch", in_the_midst)
        work(recipe=last, pace=NEVER)
    assert same(work(recipe=last, listeners=(Listener(step=lambda epoch, *_: no_more_of(epoch, 1)),)), whole)


def test_averaged_weights_in_place_are_not_saved_as_the_networks_own(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaged, own = recipe(ema=0.9, epochs=1), network()
    work(recipe=averaged, model=own, area="whole")
    monkeypatch.setattr(training, "predict", interrupted)
    with pytest.raises(Interrupted):
        work(recipe=averaged, pace=NEVER)
    saved = checkpoint.load(tmp_path / "work", "f")
    assert saved is not None
    assert all(torch.equal(saved["model"][name], tensor) for name, tensor in own.state_dict().items())
    assert not torch.equal(saved["model"]["classifier.1.weight"], saved["averaged"]["classifier.1.weight"])


def no_more_of(epoch: int, done: int) -> None:
    assert epoch > done


def test_an_interruption_tells_how_far_the_run_is_saved(work: Work) -> None:
    told: list[tuple[str, int, int]] = []
    noted = Listener(interrupted=lambda why, epochs, steps: told.append((why.signal, epochs, steps)))
    for at, torn in (((1, 1), False), ((2, 1), False), ((2, 2), True)):
        with pytest.raises(Interrupted):
            work(listeners=(stopped_at(*at, Interrupted(15, torn)), noted), pace=NEVER)
    # A torn step is not saved: what was saved before stays.
    assert told == [("SIGTERM", 0, 1), ("SIGTERM", 1, 1), ("SIGTERM", 1, 1)]


def test_an_interruption_before_the_first_step_after_a_resumption_leaves_the_checkpoint(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        work(listeners=(stopped_at(2, 1, Interrupted(15)),), pace=NEVER)
    saved = (tmp_path / "work" / checkpoint.FILE).read_bytes()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(training, "set_modes", interrupted)
        work()
    assert (tmp_path / "work" / checkpoint.FILE).read_bytes() == saved


def test_a_resumed_run_counts_the_time_of_all_its_attempts(work: Work, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        work(listeners=(killed_after(1),), pace=ALWAYS)
    saved = checkpoint.load(tmp_path / "work", "f")
    assert saved is not None
    saved["progress"]["phase_seconds"]["compute"] = 1000.0
    checkpoint.save(tmp_path / "work", "f", saved)
    assert 1000 < work().seconds < 1100


def test_a_resumed_run_knows_the_memory_of_the_attempt_that_had_most(work: Work, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        work(listeners=(killed_after(1),), pace=ALWAYS)
    saved = checkpoint.load(tmp_path / "work", "f")
    assert saved is not None
    assert saved["progress"]["peak_memory"] == pytest.approx(peak_memory("cpu"), rel=0.1)
    saved["progress"]["peak_memory"] = 2**50
    checkpoint.save(tmp_path / "work", "f", saved)
    with pytest.raises(Interrupted):
        work(listeners=(stopped_at(2, 1, Interrupted(15)),), pace=NEVER)  # which saves again
    assert work().peak_memory == 2**50


def test_a_checkpoint_of_before_memory_was_kept_is_gone_on_with(work: Work, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        work(listeners=(killed_after(1),), pace=ALWAYS)
    saved = checkpoint.load(tmp_path / "work", "f")
    assert saved is not None
    del saved["progress"]["peak_memory"]
    checkpoint.save(tmp_path / "work", "f", saved)
    assert same(work(), work(area="whole"))


def test_a_checkpoint_of_another_fingerprint_is_ignored_and_that_is_said(
    work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Killed):
        work(listeners=(killed_after(1),), pace=ALWAYS, fingerprint="other")
    resumptions: list[int] = []
    result = work(listeners=(Listener(resumed=lambda rows, _: resumptions.append(len(rows))),))
    assert "is of a training with other settings; the training starts afresh" in capsys.readouterr().out
    assert resumptions == []
    assert same(result, work(area="whole"))


def test_a_damaged_checkpoint_is_ignored_and_that_is_said(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / checkpoint.FILE).write_bytes(b"half a checkpoint")
    assert same(work(), work(area="whole"))
    assert "checkpoint.pt: is damaged; the training starts afresh" in capsys.readouterr().out


def test_a_slow_disk_has_a_first_checkpoint_soon_after_ten_seconds(toy: tuple[Batches, Batches]) -> None:
    # Of a network that Adam trains whole, with averaged weights.
    model = network()
    state = State(model, torch.device("cpu"), None, ema=0.9)
    (phase,) = build_plan(model, "same_lr", {}).phases
    optimizer = state.begin_phase(make_optimizer(model, phase, RECIPE), 0)
    train_epoch(Step(model, phase, optimizer, RECIPE), toy[0], 0, 0, "toy")
    pace, seconds = Pace(), checkpoint.size(state.content()) / checkpoint.DISK
    assert 0.2 < seconds < 0.3
    assert seconds / pace.share < pace.seconds + 3


def test_checkpoints_are_as_far_apart_as_asked(work: Work, tmp_path: Path) -> None:
    work(pace=NEVER)
    assert not (tmp_path / "work" / checkpoint.FILE).exists()


# Faults


def test_a_loss_that_is_not_finite_stops_the_run_naming_run_epoch_and_step(work: Work) -> None:
    calls = 0

    def second_step_of_the_second_epoch(model: MobileNetV2) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.tensor(math.nan if calls == 4 else 0.0)

    model = network()
    penalty = entered(second_step_of_the_second_epoch)
    plan = Plan("pretrained", (Phase(head_and_body(model).phases[0].groups, penalty=penalty),))
    with pytest.raises(InputError, match=r"^toy/same_lr/3: the loss is not finite at epoch 2, step 2; lower"):
        work(plan, model=model)


def test_an_absurd_learning_rate_stops_the_run(work: Work) -> None:
    with pytest.raises(InputError, match=r"toy/same_lr/3: the loss is not finite at epoch 1, step 2;"):
        work(recipe=recipe(lr=1e30))


def test_a_validation_loss_that_is_not_finite_stops_the_run_too(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    # The last step of an epoch may spoil the weights after a finite loss; after the last epoch nobody else would see.
    scripted(monkeypatch, [0.5, 0.3], [1.0, math.nan])
    with pytest.raises(InputError, match=r"toy/same_lr/3: the validation loss is not finite at epoch 2"):
        work(recipe=recipe(selection="last"))


# Listeners


def test_listeners_hear_every_step_and_epoch_in_order(work: Work) -> None:
    heard: list[Any] = []
    listener = Listener(step=lambda *at: heard.append(at), epoch=lambda row: heard.append(row["epoch"]))
    work(listeners=(listener,))
    assert heard == [(1, 1, 2), (1, 2, 2), 1, (2, 1, 2), (2, 2, 2), 2]


def test_a_resumed_run_tells_the_epochs_already_done(work: Work) -> None:
    with pytest.raises(Killed):
        work(listeners=(killed_after(1),), pace=ALWAYS)
    told: list[list[Row]] = []
    result = work(listeners=(Listener(resumed=lambda rows, _: told.append(rows)),))
    assert told == [result.rows[:1]]


# The golden


def test_the_seeded_losses_are_what_they_were(toy_inputs: Path, tmp_path: Path) -> None:
    """A refactor leaves this unchanged. Who means to change the numbers raises study.NUMERICS_VERSION with them.

    Other instruction sets (SSE4.1, AVX2, AVX-512) moved these losses by up to 1.6e-4; a learning rate of 5e-5
    instead of 3e-5 moves them by 1e-3 and 4e-3.
    """
    model = network()
    rows = fit(
        model,
        build_plan(model, "separate_lr", {}),
        recipe(image_size=64, epochs=3, lr=3e-5),
        batches(toy_inputs, "train", 27, 27, size=64),
        batches(toy_inputs, "val", 9, 9, size=64),
        3,
        name="toy/separate_lr/3",
        work=tmp_path,
        fingerprint="f",
    ).rows
    assert [row["train/loss"] for row in rows] == pytest.approx([1.098833, 1.118009, 1.114239], rel=3e-4)
    assert [row["val/loss"] for row in rows] == pytest.approx([1.098684, 1.098839, 1.099029], rel=3e-5)
