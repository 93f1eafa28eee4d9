"""A hand-written audit of two phases: a frozen stem whose BatchNorm is trained later, and a head."""

from typing import Any

import pytest

from finetune import audits

LR = 1e-3


def _row(phase: int, tensor: str, numel: int, group: str, lr: float, batchnorm: str = "train", kind: str = "parameter"):
    block = "classifier" if tensor.startswith("classifier") else ".".join(tensor.split(".")[:2])
    row: dict[str, Any] = {"phase": phase, "tensor": tensor, "kind": kind, "numel": numel, "block": block}
    row |= {"group": group, "lr": lr, "weight_decay": 1e-4 if lr else 0.0, "frozen": not lr, "batchnorm": batchnorm}
    return row


AUDIT = [
    _row(0, "features.0.0.weight", 90, "rest", 0.0, "eval"),
    _row(0, "features.0.1.weight", 6, "rest", 0.0, "eval"),
    _row(0, "features.0.1.bias", 4, "rest", 0.0, "eval"),
    _row(0, "classifier.1.weight", 50, "head", LR),
    _row(0, "features.0.1.running_mean", 6, "rest", 0.0, "eval", "buffer"),
    _row(1, "features.0.0.weight", 90, "rest", 0.0, "eval"),
    _row(1, "features.0.1.weight", 6, "norm", 6e-4, "affine_only"),
    _row(1, "features.0.1.bias", 4, "norm", 6e-4, "affine_only"),
    _row(1, "classifier.1.weight", 50, "head", LR),
    _row(1, "features.0.1.running_mean", 6, "norm", 0.0, "affine_only", "buffer"),
]
PHASES = [{"epochs": 1, "adds": ""}, {"epochs": 3, "adds": "penalty"}]


def test_each_phase_block_and_group_has_a_row() -> None:
    rows = audits.by_block(AUDIT, LR, PHASES)
    assert [(row["phase"], row["block"], row["group"]) for row in rows] == [
        (0, "features.0", "rest"),
        (0, "classifier", "head"),
        (1, "features.0", "rest"),
        (1, "features.0", "norm"),
        (1, "classifier", "head"),
    ]


def test_a_frozen_group_moves_nothing_at_no_rate() -> None:
    row = audits.by_block(AUDIT, LR, PHASES)[0]
    assert (row["parameters"], row["moved"], row["lr_scale"]) == (100, 0, 0.0)


def test_a_scale_is_as_the_plan_has_it() -> None:
    (row,) = audits.by_block([_row(0, "features.0.0.weight", 9, "all", 0.01 * 0.9)], 0.01, PHASES)
    assert row["lr_scale"] == 0.9  # 0.01 * 0.9 / 0.01 is a little more


def test_a_group_within_a_block_has_its_own_parameters_and_scale() -> None:
    row = audits.by_block(AUDIT, LR, PHASES)[3]
    assert (row["parameters"], row["moved"], row["lr_scale"]) == (10, 10, 0.6)


def test_what_is_fixed_within_a_trained_group_is_not_counted_as_moved() -> None:
    audit = [_row(0, "features.0.0.weight", 90, "all", LR, "eval"), _row(0, "features.0.1.bias", 4, "all", 0.0, "eval")]
    (row,) = audits.by_block(audit, LR, PHASES)
    assert (row["parameters"], row["moved"]) == (94, 90)


def test_a_batchnorm_policy_is_told_of_groups_that_hold_such_layers_alone() -> None:
    assert [row["batchnorm"] for row in audits.by_block(AUDIT, LR, PHASES)] == ["eval", "", "", "affine_only", ""]


def test_a_batchnorm_bias_in_a_group_of_its_own_has_the_policy_too() -> None:
    audit = [
        _row(0, "features.0.1.weight", 6, "rest", 0.0, "affine_only"),
        _row(0, "features.0.1.bias", 4, "bias", LR, "affine_only"),
        _row(0, "features.0.1.running_mean", 6, "rest", 0.0, "affine_only", "buffer"),
    ]
    assert [row["batchnorm"] for row in audits.by_block(audit, LR, PHASES)] == ["affine_only", "affine_only"]


def test_a_phases_epochs_and_what_it_adds_are_on_each_of_its_rows() -> None:
    told = [(row["epochs"], row["adds"]) for row in audits.by_block(AUDIT, LR, PHASES)]
    assert told == [(1, "")] * 2 + [(3, "penalty")] * 3


def test_what_lies_outside_the_network_is_one_block() -> None:
    audit = [_row(0, "policy.conv.weight", 5, "policy", LR), _row(0, "policy.head.weight", 7, "policy", LR)]
    (row,) = audits.by_block(audit, LR, PHASES)
    assert (row["block"], row["parameters"]) == ("policy", 12)


def test_a_read_back_audit_says_the_same() -> None:
    as_text = [{key: str(value) for key, value in row.items()} for row in AUDIT]
    assert audits.by_block(as_text, LR, PHASES) == audits.by_block(AUDIT, LR, PHASES)


@pytest.mark.parametrize("epochs", [3, None])
def test_a_row_reads_back_from_text(epochs: int | None) -> None:
    row = audits.by_block(AUDIT, LR, [PHASES[0], {"epochs": epochs, "adds": "penalty"}])[3]
    text = {key: "" if value is None else str(value) for key, value in row.items()}
    assert audits.typed(text) == row


def test_groups_are_counted_over_their_blocks() -> None:
    audit = [_row(0, f"features.{i}.0.weight", 10 * (i + 1), "deep", 4e-4) for i in range(3)]
    assert audits.by_group(audit, LR) == [
        {
            "phase": 0,
            "group": "deep",
            "blocks": ["features.0", "features.1", "features.2"],
            "tensors": 3,
            "parameters": 60,
            "moved": 60,
            "lr_scale": 0.4,
            "weight_decay": 1e-4,
            "batchnorm": "",
        }
    ]


def test_groups_of_each_phase_are_apart() -> None:
    rows = audits.by_group(AUDIT, LR)
    assert [(row["phase"], row["group"], row["tensors"], row["moved"]) for row in rows] == [
        (0, "rest", 3, 0),
        (0, "head", 1, 50),
        (1, "rest", 1, 0),
        (1, "norm", 2, 10),
        (1, "head", 1, 50),
    ]


def test_a_parameter_trained_in_several_phases_counts_once() -> None:
    assert audits.trained(AUDIT) == (60, 150)  # head and norm, of them and the convolution's 90


def test_the_phases_of_a_run_have_their_epochs() -> None:
    phases = [{"epochs": [1, 1], "groups": []}, {"epochs": [2, 4], "groups": [], "adds": ["penalty", "scales"]}]
    assert audits.phases_of({"phases": phases}, AUDIT) == [
        {"epochs": 1, "adds": ""},
        {"epochs": 3, "adds": "penalty scales"},
    ]


def test_the_one_phase_of_an_older_run_has_all_epochs() -> None:
    assert audits.phases_of({"training": {"epochs": 7}}, AUDIT[:5]) == [{"epochs": 7, "adds": ""}]


def test_the_phases_of_an_older_run_have_none_that_is_known() -> None:
    assert [phase["epochs"] for phase in audits.phases_of({"training": {"epochs": 7}}, AUDIT)] == [None, None]


@pytest.mark.parametrize("word", ["measured", "solved"])
def test_a_rate_that_is_a_word_is_no_scale(word: str) -> None:
    audit = [_row(0, "classifier.1.weight", 50, "head", LR) | {"lr": word}]
    (of_block,) = audits.by_block(audit, LR, PHASES)
    (of_group,) = audits.by_group(audit, LR)
    assert (of_block["lr_scale"], of_group["lr_scale"], of_block["moved"]) == (None, None, 50)
    as_text = {key: "" if value is None else str(value) for key, value in of_block.items()}
    assert audits.typed(as_text) == of_block
