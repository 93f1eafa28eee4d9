"""What every strategy keeps where a CPU computes in bfloat16 and frozen layers keep less for the backward pass."""

from pathlib import Path
from typing import Any

import pytest

from finetune.training import epochs_of
from strategy_case import CATALOGUE, Case, content_of, moved_though_frozen, same, still_though_trained

EPOCHS = {"gradual_unfreeze": 3, "lp_ft": 2, "lp_ft_slow": 2}  # one a phase


@pytest.fixture(scope="module", params=CATALOGUE)
def case(
    request: pytest.FixtureRequest,
    toy_inputs: Path,
    tiny_content: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    name = request.param
    lean = {"precision": "bf16", "lean_backward": True, "schedule": {"name": "constant"}}
    content = content_of(tiny_content, name, CATALOGUE[name], EPOCHS.get(name, 1), **lean)
    return Case(name, content, tmp_path_factory.mktemp("case"), toy_inputs, copies=True)


def test_the_network_is_the_one_that_such_a_run_trains(case: Case) -> None:
    model, _ = case.network()
    found = {(type(module).__module__.removeprefix("finetune."), type(module).__name__) for module in model.modules()}
    assert found >= {("cpu_gradients", "StridedConv2d")} | {
        ("lean_backward", name) for name in ("LeanConv2d", "_BatchNorm2d", "_ReLU6")
    }


def test_what_the_audit_calls_frozen_stays_to_the_bit(case: Case) -> None:
    assert moved_though_frozen(case) == []


def test_every_group_that_is_trained_moves(case: Case) -> None:
    assert still_though_trained(case) == []


def test_stopped_in_its_last_phase_and_resumed_it_gives_the_same_bits(case: Case) -> None:
    if case.plan.phases[0].solve:  # at once: there is nothing to be stopped
        assert same(case.run("again"), case.whole)
        return
    _, first, _ = epochs_of(case.plan, case.recipe.epochs)[-1]
    assert same(case.stopped_and_resumed(first + 1, 1), case.whole)
