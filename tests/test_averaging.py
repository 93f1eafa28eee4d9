"""The moving average of a network, by hand."""

from typing import Any

import pytest
import torch
from torch import nn

from finetune.averaging import Averaged


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
