"""params.yaml as frozen, validated models; an unknown key is an error that names the nearest known one."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from finetune.errors import InputError, suggest
from finetune.params_file import NAME, merge, read, sentence


def _filled(value: Any) -> Any:
    """A section of which only the name is there is null in YAML: an empty one."""
    return {} if value is None else value


Name = Annotated[str, Field(pattern=NAME)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]  # what PyTorch, NumPy and SQLite all take
_OWN_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
Overrides = Annotated[dict[str, Any], BeforeValidator(_filled)]
Sources = Annotated[dict[str, Annotated[tuple[str, ...], Field(strict=False)]], BeforeValidator(_filled)]


class _Section(BaseModel):
    # Strict: the text "5" is no number. YAML has lists where we have tuples, so those alone are converted.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    _null = model_validator(mode="before")(_filled)


class StudyParams(_Section):
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


class PrepareParams(_Section):
    """Archive -> store."""

    short_side: int = Field(256, ge=8)  # pixels; larger images are shrunk to it, none is enlarged
    val_fraction: float = Field(0.1, ge=0.0, lt=1.0)  # of the official training split, stratified
    split_seed: Seed = 0


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
    """A data set's own settings, over `training` and `prepare`; and how to read one that has no file of its own."""

    training: Overrides = {}
    prepare: Overrides = {}
    sources: Sources = {}  # archive -> URLs or paths that `finetune fetch` tries in turn, instead of the known ones
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
    training: Overrides = {}

    _null = model_validator(mode="before")(_filled)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Params(_Section):
    """The whole of params.yaml."""

    study: StudyParams
    prepare: PrepareParams = PrepareParams()
    backbone: BackboneParams = BackboneParams()
    training: TrainingParams = TrainingParams()
    datasets: Annotated[dict[Name, DatasetParams], BeforeValidator(_filled)]
    strategies: Annotated[dict[Name, StrategyParams], BeforeValidator(_filled)]

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
            training = params.training_for(dataset, strategy)
            if training.selection == "best" and params.prepare_for(dataset).val_fraction == 0:
                raise InputError(
                    f"{origin}: training.selection is 'best' but prepare.val_fraction is 0 for {dataset}, so there is "
                    "no validation split to choose by; set a val_fraction above 0, or selection: last"
                )
    return params


def _check_override(origin: str, where: tuple[str, ...], base: _Section, over: Mapping[str, Any]) -> None:
    try:
        type(base).model_validate(merge(base.model_dump(), over))
    except ValidationError as error:
        raise InputError(sentence(origin, where, error, type(base))) from None
