"""params.yaml as frozen, validated models; an unknown key is an error that names the nearest known one."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from finetune.errors import InputError, suggest


class _Section(BaseModel):
    # Strict: the text "5" is no number. YAML has lists where we have tuples, so those alone are converted.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StudyParams(_Section):
    """Which runs there are: data sets x strategies x seeds."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    edition: str = "official"  # whose archives `prepare` accepts: sample | reduced | official | any
    datasets: tuple[str, ...] = Field(min_length=1, strict=False)
    strategies: tuple[str, ...] = Field(min_length=1, strict=False)
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1, strict=False)
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


class PrepareParams(_Section):
    """Archive -> store."""

    short_side: int = Field(256, ge=8)  # pixels; larger images are shrunk to it, none is enlarged
    val_fraction: float = Field(0.1, ge=0.0, lt=1.0)  # of the official training split, stratified
    split_seed: NonNegativeInt = 0


class BackboneParams(_Section):
    """Where the pretrained weights come from."""

    source: str = "torchvision"  # sample | torchvision | path to a .safetensors or .pth state dict
    weights: str = "MobileNet_V2_Weights.IMAGENET1K_V1"  # torchvision's enum name, for source: torchvision


class ScheduleParams(_Section):
    """Learning-rate multiplier as a function of progress."""

    name: Literal["exponential", "cosine", "constant"] = "exponential"
    gamma: float = Field(0.9, gt=0.0, le=1.0)  # exponential: factor per epoch


class AugmentationParams(_Section):
    """What a training image goes through."""

    name: Literal["random_resized_crop", "pad_crop", "none"] = "random_resized_crop"
    scale: tuple[float, float] = Field((0.08, 1.0), strict=False)  # random_resized_crop: share of the image's area
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), strict=False)  # random_resized_crop: width : height
    padding: int = Field(4, ge=0)  # pad_crop: black pixels added on each side of the stored image
    flip: bool = True  # horizontal, with probability 1/2; not for `none`

    @model_validator(mode="after")
    def _ranges(self) -> "AugmentationParams":
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {list(self.scale)} must be two rising numbers in (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {list(self.ratio)} must be two rising positive numbers")
        return self


class TrainingParams(_Section):
    """The training recipe; data sets and strategies may override any of it."""

    image_size: int = Field(224, ge=16)  # pixels, what the network sees
    epochs: int = Field(40, ge=1)
    batch_size: int = Field(64, ge=2)
    lr: float = Field(1e-3, gt=0.0)  # Adam's learning rate at scale 1
    weight_decay: float = Field(1e-4, ge=0.0)  # L2, added to the gradient as torch.optim.Adam does
    schedule: ScheduleParams = ScheduleParams()
    augmentation: AugmentationParams = AugmentationParams()
    crop_pct: float = Field(0.875, gt=0.0, le=1.0)  # evaluation: centre crop : short side (224 : 256)
    selection: Literal["best", "last"] = "best"  # which epoch's weights are kept; best by validation
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"  # tf32: fp32 but for the products' operands, on a GPU
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = "none"  # mode of torch.compile
    depthwise: Literal["torch", "triton"] = "torch"  # whose kernels the depthwise convolutions take on a GPU
    deterministic: bool = False  # on a GPU: only kernels that give the same bits again; on the CPU all do
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    threads: int = Field(2, ge=1)  # of the CPU; part of what a run's numbers depend on
    device: Literal["auto", "cpu", "cuda"] = "auto"


class DatasetParams(_Section):
    """A data set's own settings, over `training` and `prepare`."""

    training: dict[str, Any] = {}
    prepare: dict[str, Any] = {}


class StrategyParams(BaseModel):
    """A variant of a plan: the plan's name, its options (any other key), training overrides."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    plan: str = ""
    training: dict[str, Any] = {}

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Params(_Section):
    """The whole of params.yaml."""

    study: StudyParams
    prepare: PrepareParams = PrepareParams()
    backbone: BackboneParams = BackboneParams()
    training: TrainingParams = TrainingParams()
    datasets: dict[str, DatasetParams]
    strategies: dict[str, StrategyParams]

    def training_for(self, dataset: str, strategy: str) -> TrainingParams:
        """The recipe of a run. Precedence: strategy > data set > `training`."""
        merged = _merge(self.training.model_dump(), self.datasets[dataset].training)
        return TrainingParams.model_validate(_merge(merged, self.strategies[strategy].training))

    def prepare_for(self, dataset: str) -> PrepareParams:
        return PrepareParams.model_validate(_merge(self.prepare.model_dump(), self.datasets[dataset].prepare))

    def plan_for(self, strategy: str) -> str:
        """The plan that a variant is built on: its own name unless it says otherwise."""
        return self.strategies[strategy].plan or strategy


def load(path: Path, overrides: Iterable[str] = ()) -> Params:
    """Read and validate `path`; `overrides` are `dotted.key=value` texts, applied before validation.

    Raises:
        InputError: the file is absent, is not YAML, or a key or value in it is wrong.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Yaml12Floats)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; run this in the repository's root, or name the file with --params"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}; mend that line") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: found {type(raw).__name__}, expected a mapping with the sections study, datasets, …")
    for text in overrides:
        _override(raw, text)
    return parse(raw, str(path))


def parse(raw: Mapping[str, Any], origin: str = "params.yaml") -> Params:
    """Validate an already loaded mapping; see `load`."""
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise InputError(_sentence(origin, (), error, Params)) from None
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
            training = params.training_for(dataset, strategy)
            if training.selection == "best" and params.prepare_for(dataset).val_fraction == 0:
                raise InputError(
                    f"{origin}: training.selection is 'best' but prepare.val_fraction is 0 for {dataset}, so there is "
                    "no validation split to choose by; set a val_fraction above 0, or selection: last"
                )
    return params


class _Yaml12Floats(yaml.SafeLoader):
    """PyYAML reads 1e-3 as text (YAML 1.1); DVC reads it as a number (YAML 1.2), and so do we."""

    yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}  # noqa: RUF012


_Yaml12Floats.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _override(raw: dict[str, Any], text: str) -> None:
    key, sep, value = text.partition("=")
    if not sep or not key.strip():
        raise InputError(f"override '{text}': expected KEY=VALUE, for example training.lr=1e-3")
    *sections, leaf = key.strip().split(".")
    node: Any = raw
    for section in sections:
        if not isinstance(node, dict) or (section in node and not isinstance(node[section], dict | None)):
            raise InputError(f"override '{text}': {section} is not a section of params.yaml")
        node[section] = node.get(section) or {}
        node = node[section]
    try:
        node[leaf] = yaml.load(value, Loader=_Yaml12Floats)
    except yaml.YAMLError:
        raise InputError(f"override '{text}': '{value}' is not a YAML value; quote it") from None


def _check_override(origin: str, where: tuple[str, ...], base: _Section, over: Mapping[str, Any]) -> None:
    try:
        type(base).model_validate(_merge(base.model_dump(), over))
    except ValidationError as error:
        raise InputError(_sentence(origin, where, error, type(base))) from None


def _sentence(origin: str, where: tuple[str, ...], error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    loc = [*where, *map(str, first["loc"])]
    key = ".".join(loc) or "the file"
    if first["type"] == "extra_forbidden":
        section = ".".join(loc[:-1]) or "the top level"
        return f"{origin}: {key} is not a known key of {section}; {suggest(loc[-1], _keys(model, first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"{origin}: {key} is missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{origin}: {key}: {message}"
    found = first["input"]
    return f"{origin}: {key}: found {found!r} ({type(found).__name__}), expected: {message.removeprefix('Input ')}"


def _keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The known keys of the section that `loc` leads to."""
    for part in loc:
        field = model.model_fields.get(str(part))
        if field is None:
            continue  # a name inside a dict of sections
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), model)
    return list(model.model_fields)
