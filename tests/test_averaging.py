"""The moving average of a network, by hand; and that of a run's network, which is validated and kept in its place."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trained_plan
from finetune.averaging import Averaged
from finetune.evaluation import predict
from finetune.strategies import build_plan
from finetune.training import Listener, Progress, fit


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    model[0].weight.data.fill_(1.0)
    return model


def test_the_average_follows_by_one_minus_decay_with_a_ramp() -> None:
    model = network()
    averaged = Averaged(model, decay=0.5)
    model[0].weight.data.fill_(2.0)
    averaged.update(1)  # decay (1 + 1) / (10 + 1): 1 -> 1 + 9 / 11
    assert averaged.state_dict()["0.weight"].item() == pytest.approx(1 + 9 / 11)
    averaged.update(1000)  # decay 0.5
    assert averaged.state_dict()["0.weight"].item() == pytest.approx((1 + 9 / 11 + 2) / 2)


def test_statistics_are_averaged_and_counters_are_copied() -> None:
    model = network()
    averaged = Averaged(model, decay=0.25)
    model(torch.tensor([[1.0], [3.0]]))  # running mean 0.1 * 2
    averaged.update(1000)
    assert averaged.state_dict()["1.running_mean"].item() == pytest.approx(0.75 * 0.2)
    assert averaged.state_dict()["1.num_batches_tracked"].item() == 1


def test_what_does_not_change_stays_to_the_bit() -> None:
    model = nn.Linear(50, 50)
    averaged = Averaged(model, decay=0.937)
    before = model.weight.detach().clone()
    for step in range(1, 40):
        averaged.update(step)
    assert torch.equal(averaged.state_dict()["weight"], before)


def test_it_is_in_place_within_only_also_after_an_error() -> None:
    model = network()
    averaged = Averaged(model, decay=0.5)
    model[0].weight.data.fill_(3.0)
    with pytest.raises(KeyError), averaged.in_place():
        assert model[0].weight.item() == 1.0
        raise KeyError
    assert model[0].weight.item() == 3.0


def test_the_networks_own_are_known_whatever_lies_in_its_place() -> None:
    model = network()
    averaged = Averaged(model, decay=0.5)
    model[0].weight.data.fill_(3.0)
    assert averaged.network()["0.weight"].item() == 3.0
    with averaged.in_place():
        assert averaged.network()["0.weight"].item() == 3.0
    model[0].weight.data.fill_(4.0)
    assert averaged.network()["0.weight"].item() == 4.0


@pytest.mark.parametrize("copy", [1, 2], ids=["there", "back"])
def test_they_are_known_when_a_copy_ends_halfway(copy: int) -> None:
    model = network()
    averaged = Averaged(model, decay=0.5)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.full_like(tensor, 3))
    copies, load = 0, model[1]._load_from_state_dict

    def halfway(*given: Any) -> None:  # the weight of the first layer is copied, nothing of the second
        nonlocal copies
        copies += 1
        if copies == copy:
            raise KeyboardInterrupt
        load(*given)

    model[1]._load_from_state_dict = halfway
    with pytest.raises(KeyboardInterrupt), averaged.in_place():
        pass
    assert {tensor.item() for tensor in averaged.network().values()} == {3.0}


def test_it_goes_on_from_what_was_saved() -> None:
    model = network()
    saved = {name: tensor.clone() + 1 for name, tensor in Averaged(model, 0.5).state_dict().items()}
    again = Averaged(model, 0.5, saved)
    assert again.state_dict()["0.weight"].item() == 2.0
    again.update(1000)
    assert again.state_dict()["0.weight"].item() == 1.5
    assert saved["0.weight"].item() == 2.0, "what was saved is not changed"


# The run's


@pytest.fixture(scope="module")
def run(toy_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Progress, list[dict[str, Tensor]]]:
    """2 epochs of 2 steps at a decay of 0.3, and the network's own tensors at first and after each step."""
    torch.set_num_threads(1)
    model, own = trained_plan.network(toy_inputs), list[dict[str, Tensor]]()
    settings = trained_plan.recipe(ema=0.3, selection="last")

    def note(*_: int) -> None:
        own.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    note()
    progress = fit(
        model,
        build_plan(model, "same_lr", {}),
        settings,
        trained_plan.images(toy_inputs),
        trained_plan.images(toy_inputs, "val"),
        1,
        name="toy",
        work=tmp_path_factory.mktemp("averaged"),
        fingerprint="f",
        listeners=(Listener(step=note),),
    )
    return progress, own


def replayed(own: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The average after the last step, in float64; counters are the network's own."""
    average = {name: tensor.double() for name, tensor in own[0].items()}
    # (1 + t) / (10 + t) after step t, which is counted over both epochs, while that is below 0.3: 4 / 13 is not.
    for decay, tensors in zip((2 / 11, 3 / 12, 0.3, 0.3), own[1:], strict=True):
        for name, tensor in tensors.items():
            average[name] = decay * average[name] + (1 - decay) * tensor.double()
    counters = {name: tensor for name, tensor in own[-1].items() if not tensor.is_floating_point()}
    return {name: tensor.float() for name, tensor in average.items()} | counters


def test_a_run_keeps_the_average_over_all_its_steps(run: tuple[Progress, list[dict[str, Tensor]]]) -> None:
    progress, own = run
    expected = replayed(own)
    assert list(progress.kept_state) == list(expected)
    for name, tensor in progress.kept_state.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_run_validates_the_average_that_it_keeps(
    run: tuple[Progress, list[dict[str, Tensor]]], toy_inputs: Path
) -> None:
    (*_, row), own = run[0].rows, run[1]
    losses = []
    for tensors in (replayed(own), own[-1]):
        model = trained_plan.network(toy_inputs)
        model.load_state_dict(tensors)
        losses.append(predict(model, trained_plan.images(toy_inputs, "val"), "fp32").loss)
    assert row["val/loss"] == pytest.approx(losses[0], rel=1e-4)
    assert row["val/loss"] != pytest.approx(losses[1], rel=1e-2)
