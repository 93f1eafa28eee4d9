from typing import Any

import pytest

from finetune import recipe_words
from finetune.recipe import OptimizerParams, ScheduleParams, TrainingParams


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({}, "Adam"),
        ({"name": "adam", "betas": [0.9, 0.99]}, "Adam (betas 0.9, 0.99)"),
        ({"name": "adamw"}, "AdamW"),
        ({"name": "sgd"}, "SGD with Nesterov momentum 0.9"),
        ({"name": "sgd", "momentum": 0.5, "nesterov": False}, "SGD with momentum 0.5"),
        ({"name": "sgd", "momentum": 0.0, "nesterov": False}, "SGD"),
    ],
)
def test_an_optimizer_in_words(chosen: dict[str, Any], words: str) -> None:
    assert recipe_words.optimizer(OptimizerParams.model_validate(chosen)) == words


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({}, "exponential, 0.9 an epoch"),
        ({"name": "cosine"}, "cosine"),
        ({"name": "step", "gamma": 0.1, "every": 30}, "step, 0.1 every 30 epochs"),
        ({"name": "constant", "warmup_epochs": 1.0}, "constant, with 1 epoch of warm-up"),
        ({"name": "cosine", "warmup_epochs": 2.5}, "cosine, with 2.5 epochs of warm-up"),
    ],
)
def test_a_schedule_in_words(chosen: dict[str, Any], words: str) -> None:
    assert recipe_words.schedule(ScheduleParams.model_validate(chosen)) == words


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({}, []),
        ({"label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0}, ["label smoothing 0.1", "mixup 0.2", "cutmix 1"]),
        ({"ema": 0.999, "accumulation": 4}, ["averaged weights (EMA 0.999)", "steps of 4 batches"]),
        ({"bn": "eval", "freeze_epochs": 3}, ["BatchNorm eval", "the head alone for 3 epochs"]),
        ({"lean_backward": True}, ["frozen layers that keep little"]),
        ({"activation_checkpointing": True}, ["activation checkpointing"]),
    ],
)
def test_what_is_on_besides_in_words(chosen: dict[str, Any], words: list[str]) -> None:
    assert recipe_words.extras(TrainingParams.model_validate(chosen)) == words


def test_own_settings_are_options_and_dotted_keys() -> None:
    training = {"epochs": 8, "optimizer": {"name": "sgd", "momentum": 0.5}}
    assert recipe_words.own_settings({"last_blocks": 3}, training) == (
        "last_blocks: 3, training.epochs: 8, training.optimizer.name: sgd, training.optimizer.momentum: 0.5"
    )
