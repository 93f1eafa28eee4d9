"""params.yaml as frozen, validated models; an unknown key is an error that names the nearest known one."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from finetune.errors import InputError, suggest
from finetune.params_file import NAME, merge, read, sentence
from finetune.recipe import (
    AugmentationParams,
    OptimizerParams,
    Overrides,
    ScheduleParams,
    Section,
    TrainingParams,
    filled,
)

__all__ = ["AugmentationParams", "OptimizerParams", "Params", "ScheduleParams", "TrainingParams", "load", "parse"]

Name = Annotated[str, Field(pattern=NAME)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]  # what PyTorch, NumPy and SQLite all take
_OWN_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
Sources = Annotated[dict[str, Annotated[tuple[str, ...], Field(strict=False)]], BeforeValidator(filled)]


class StudyParams(Section):
    """Which runs there are: data sets x strategies x seeds."""

    name: Name
    edition: str = "official"  # whose archives `prepare` accepts: sample | reduced | official | any
    datasets: tuple[str, ...] = Field(min_length=1, strict=False)
    strategies: tuple[str, ...] = Field(min_length=1, strict=False)
    seeds: tuple[Seed, ...] = Field(min_length=1, strict=False)
    baseline: str  # the strategy that the others are compared with

    @model_validator(mode="after")
    def _consistent(self) -> "StudyParams":
        for key in ("datasets", "strategies", "seeds"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ValueError(f"{key} lists an entry twice; list each once")
        if self.baseline not in self.strategies:
            raise ValueError(f"baseline '{self.baseline}' is not among strategies; name one of them")
        return self


class PrepareParams(Section):
    """Archive -> store."""

    short_side: int = Field(256, ge=8)  # pixels; larger images are shrunk to it, none is enlarged
    val_fraction: float = Field(0.1, ge=0.0, lt=1.0)  # of the official training split, stratified
    split_seed: Seed = 0


class BackboneParams(Section):
    """Where the pretrained weights come from."""

    source: str = "torchvision"  # sample | torchvision | path to a .safetensors or .pth state dict
    weights: str = "MobileNet_V2_Weights.IMAGENET1K_V1"  # torchvision's enum name, for source: torchvision


class DatasetParams(Section):
    """A data set's own settings, over `training` and `prepare`; and how to read one that has no file of its own."""

    training: Overrides = Field({})
    prepare: Overrides = Field({})
    sources: Sources = Field(
        {}
    )  # archive -> URLs or paths that `finetune fetch` tries in turn, instead of the known ones
    reader: Literal["class_folders"] | None = None  # finetune.datasets.class_folders has the rules
    title: str = ""  # as reports write it
    archive: str = ""  # the file in data/<name>/, where there are several
    test_fraction: float = Field(0.2, gt=0.0, lt=1.0)  # of each class, where the images come in one pool
    test_seed: Seed = 0  # which of them
    fraction: float = Field(1.0, gt=0.0, le=1.0)  # of each class of train; smaller ones lie in larger

    @model_validator(mode="after")
    def _belong_together(self) -> "DatasetParams":
        fields = type(self).model_fields
        own = ("title", "archive", "test_fraction", "test_seed")
        given = [key for key in own if getattr(self, key) != fields[key].default]
        if given and self.reader is None:
            raise ValueError(f"{given[0]} is for data of one's own; add reader: class_folders, or remove it")
        if self.archive and ("/" in self.archive or not self.archive.lower().endswith(_OWN_ARCHIVES)):
            raise ValueError(
                f"archive {self.archive!r} must be the name of a {' or '.join(_OWN_ARCHIVES)} in the data set's folder"
            )
        return self


class StrategyParams(BaseModel):
    """A variant of a plan: the plan's name, its options (any other key), training overrides."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    plan: str = ""
    training: Overrides = Field({})

    _null = model_validator(mode="before")(filled)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Params(Section):
    """The whole of params.yaml."""

    study: StudyParams
    prepare: PrepareParams = PrepareParams()
    backbone: BackboneParams = BackboneParams()
    training: TrainingParams = TrainingParams()
    datasets: Annotated[dict[Name, DatasetParams], BeforeValidator(filled)]
    strategies: Annotated[dict[Name, StrategyParams], BeforeValidator(filled)]

    def training_for(self, dataset: str, strategy: str) -> TrainingParams:
        """The recipe of a run. Precedence: strategy > data set > `training`."""
        merged = merge(self.training.model_dump(), self.datasets[dataset].training)
        return TrainingParams.model_validate(merge(merged, self.strategies[strategy].training))

    def prepare_for(self, dataset: str) -> PrepareParams:
        return PrepareParams.model_validate(merge(self.prepare.model_dump(), self.datasets[dataset].prepare))

    def plan_for(self, strategy: str) -> str:
        """The plan that a variant is built on: its own name unless it says otherwise."""
        return self.strategies[strategy].plan or strategy


def load(path: Path, overrides: Iterable[str] = ()) -> Params:
    """Read and validate `path`; `overrides` are `dotted.key=value` texts, applied before validation.

    Raises:
        InputError: the file cannot be read, is not YAML, or a key or value in it is wrong.
    """
    return parse(read(path, overrides), str(path))


def parse(raw: Mapping[str, Any], origin: str = "params.yaml") -> Params:
    """Validate an already loaded mapping; see `load`."""
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise InputError(sentence(origin, (), error, Params)) from None
    for kind, names, known in (
        ("datasets", params.study.datasets, params.datasets),
        ("strategies", params.study.strategies, params.strategies),
    ):
        for name in names:
            if name not in known:
                raise InputError(
                    f"{origin}: study.{kind} lists '{name}', which has no entry under {kind}; {suggest(name, known)}"
                )
    for dataset, own in params.datasets.items():
        _check_override(origin, ("datasets", dataset, "training"), params.training, own.training)
        _check_override(origin, ("datasets", dataset, "prepare"), params.prepare, own.prepare)
    for strategy, variant in params.strategies.items():
        _check_override(origin, ("strategies", strategy, "training"), params.training, variant.training)
    for dataset in params.study.datasets:
        for strategy in params.study.strategies:
            try:
                training = params.training_for(dataset, strategy)
            except ValidationError as error:  # each override is right by itself
                where = ("training", f"<{dataset}, {strategy}>")
                raise InputError(sentence(origin, where, error, TrainingParams)) from None
            if training.selection == "best" and params.prepare_for(dataset).val_fraction == 0:
                raise InputError(
                    f"{origin}: training.selection is 'best' but prepare.val_fraction is 0 for {dataset}, so there is "
                    "no validation split to choose by; set a val_fraction above 0, or selection: last"
                )
    return params


def on_device(recipe: TrainingParams, device: str) -> TrainingParams:
    """A recipe for another device.

    Raises:
        InputError: it is none for that.
    """
    try:
        return TrainingParams.model_validate({**recipe.model_dump(), "device": device})
    except ValidationError as error:
        raise InputError(sentence(f"params.yaml on {device}", ("training",), error, TrainingParams)) from None


def _check_override(origin: str, where: tuple[str, ...], base: Section, over: Mapping[str, Any]) -> None:
    try:
        type(base).model_validate(merge(base.model_dump(), over))
    except ValidationError as error:
        raise InputError(sentence(origin, where, error, type(base))) from None
