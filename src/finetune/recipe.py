"""The training recipe, as the section `training` of params.yaml has it, and which settings exclude each other."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def filled(value: Any) -> Any:
    """A section of which only the name is there is null in YAML: an empty one."""
    return {} if value is None else value


class Section(BaseModel):
    """A section of params.yaml."""

    # Strict: the text "5" is no number. YAML has lists where we have tuples, so those alone are converted. Its .inf and
    # .nan are no numbers to train by.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    _null = model_validator(mode="before")(filled)


Overrides = Annotated[dict[str, Any], BeforeValidator(filled)]


class ScheduleParams(Section):
    """Learning-rate multiplier as a function of progress."""

    name: Literal["exponential", "cosine", "step", "constant"] = "exponential"
    gamma: float = Field(0.9, gt=0.0, le=1.0)  # exponential: factor per epoch; step: factor per step
    every: int = Field(30, ge=1)  # step: epochs from one step to the next
    warmup_epochs: float = Field(0.0, ge=0.0)  # over which the rate rises linearly to the schedule's


class OptimizerParams(Section):
    """What turns gradients into steps."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    betas: tuple[float, float] = Field((0.9, 0.999), strict=False)  # adam, adamw
    momentum: float = Field(0.9, ge=0.0, lt=1.0)  # sgd
    nesterov: bool = True  # sgd

    @model_validator(mode="after")
    def _consistent(self) -> "OptimizerParams":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must be two numbers in [0, 1)")
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set one, or nesterov: false")
        return self


class AugmentationParams(Section):
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


class TrainingParams(Section):
    """The training recipe; data sets and strategies may override any of it."""

    image_size: int = Field(224, ge=16)  # pixels, what the network sees
    epochs: int = Field(40, ge=1)
    batch_size: int = Field(64, ge=2)
    accumulation: int = Field(1, ge=1)  # batches whose gradients make one step
    lr: float = Field(1e-3, gt=0.0)  # the optimizer's learning rate at scale 1
    weight_decay: float = Field(1e-4, ge=0.0)  # L2, added to the gradient as Adam and SGD do; adamw: decoupled
    optimizer: OptimizerParams = OptimizerParams()
    schedule: ScheduleParams = ScheduleParams()
    freeze_epochs: int = Field(0, ge=0)  # first so many epochs of the head alone, then the strategy
    bn: Literal["train", "eval", "affine_only"] | None = None  # BatchNorm of what is trained, over the strategy's own
    augmentation: AugmentationParams = AugmentationParams()
    mixup: float = Field(0.0, ge=0.0)  # alpha of its Beta distribution; 0: off
    cutmix: float = Field(0.0, ge=0.0)  # the same; with both, each step tosses a coin
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)  # share of the target spread over all classes
    ema: float = Field(0.0, ge=0.0, lt=1.0)  # decay per step of averaged weights, which are evaluated and kept; 0: off
    crop_pct: float = Field(0.875, gt=0.0, le=1.0)  # evaluation: centre crop : short side (224 : 256)
    selection: Literal["best", "last"] = "best"  # which epoch's weights are kept; best by validation
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"  # tf32: fp32 but for the products' operands, on a GPU
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = "none"  # mode of torch.compile
    depthwise: Literal["torch", "triton"] = "torch"  # whose kernels the depthwise convolutions take on a GPU
    cpu_kernels: Literal["torch", "native"] = "torch"  # whose kernels, on a CPU; native: ours, in channels_last
    lean_backward: bool = False  # frozen layers keep what the backward pass needs, and no more; takes time on a CPU
    activation_checkpointing: bool = False  # compute a block's forward pass again instead of keeping what it made
    deterministic: bool = False  # on a GPU: only kernels that give the same bits again; on the CPU all do
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    threads: int = Field(2, ge=1, le=1024)  # of the CPU; part of what a run's numbers depend on
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def takes_native_kernels(self) -> bool:
        """Whether a training, whose device is resolved, is by this project's kernels for a CPU."""
        return self.cpu_kernels == "native" and self.device == "cpu"

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingParams":
        for key, value in (
            ("freeze_epochs", self.freeze_epochs),
            ("schedule.warmup_epochs", self.schedule.warmup_epochs),
        ):
            if value >= self.epochs:
                raise ValueError(
                    f"{key} is {value:g} but epochs is {self.epochs}; leave an epoch for what comes "
                    f"after, or set {key} to 0"
                )
        for key, on in (
            ("activation_checkpointing", self.activation_checkpointing),
            ("lean_backward", self.lean_backward),
        ):
            if on and self.compile != "none":
                raise ValueError(
                    f"{key} and compile: {self.compile} exclude each other, as torch.compile decides by itself what to "
                    "keep; use one of them"
                )
        if self.cpu_kernels == "native" and self.device != "cuda":
            if self.compile != "none":
                raise ValueError(
                    f"cpu_kernels: native and compile: {self.compile} exclude each other on a CPU, as torch.compile "
                    "makes kernels of its own; use one of them, or device: cuda"
                )
            if self.memory_format != "channels_last":
                raise ValueError(
                    f"cpu_kernels: native is for memory_format: channels_last, found {self.memory_format}; set that, "
                    "or cpu_kernels: torch"
                )
        return self
