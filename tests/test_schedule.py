"""Learning-rate multipliers, by hand."""

import pytest
import torch

from finetune.params import ScheduleParams
from finetune.schedule import cosine, exponential, multiplier


def test_exponential_is_gamma_to_the_finished_epochs() -> None:
    assert [exponential(epoch, 0.5) for epoch in range(4)] == [1, 0.5, 0.25, 0.125]


def test_exponential_is_torchs_stepped_once_an_epoch() -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.95)
    for epoch in range(10):
        assert 0.3 * exponential(epoch, 0.95) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(("progress", "expected"), [(0, 1), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25), (1, 0)])
def test_cosine_falls_from_one_to_zero(progress: float, expected: float) -> None:
    assert cosine(progress) == pytest.approx(expected)


def test_an_exponential_schedule_holds_within_an_epoch() -> None:
    schedule = ScheduleParams(name="exponential", gamma=0.9)
    assert [multiplier(schedule, 2, step, steps=3, epochs=5) for step in range(3)] == [0.9**2] * 3


def test_a_cosine_schedule_falls_step_by_step() -> None:
    schedule = ScheduleParams(name="cosine")
    found = [multiplier(schedule, epoch, step, steps=3, epochs=2) for epoch in range(2) for step in range(3)]
    assert found == pytest.approx([1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873])


def test_a_constant_schedule_is_one() -> None:
    schedule = ScheduleParams(name="constant")
    assert {multiplier(schedule, epoch, 1, steps=3, epochs=9) for epoch in range(9)} == {1.0}


def test_a_step_schedule_is_torchs_steplr() -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1)
    schedule = ScheduleParams(name="step", gamma=0.1, every=3)
    for epoch in range(10):
        assert multiplier(schedule, epoch, 0, steps=2, epochs=10) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_a_warm_up_rises_in_equal_stages_to_the_schedule() -> None:
    schedule = ScheduleParams(name="constant", warmup_epochs=1.5)
    found = [multiplier(schedule, epoch, step, steps=2, epochs=3) for epoch in range(3) for step in range(2)]
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_a_warm_up_is_multiplied_by_the_schedule_that_goes_on_beneath() -> None:
    schedule = ScheduleParams(name="cosine", warmup_epochs=1)
    found = [multiplier(schedule, epoch, step, steps=3, epochs=2) for epoch in range(2) for step in range(3)]
    assert found == pytest.approx([1 / 3, 2 / 3 * 0.9330127, 0.75, 0.5, 0.25, 0.0669873])
