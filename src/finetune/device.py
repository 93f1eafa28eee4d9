"""How a run computes: on which device, at which precision, compiled or not, and where its pixels lie."""

import os

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2

from finetune import cpu_gradients, depthwise, gpu_convolutions, lean_backward, native_layers, recomputation
from finetune.allocator import keep_freed_memory
from finetune.batches import Batches, DeviceBatches
from finetune.errors import InputError
from finetune.native_batches import NativeBatches
from finetune.params import TrainingParams
from finetune.processor import cpu_has_bf16
from finetune.store import Split

_FEWER_WRITTEN = {"realize_reads_threshold": 12, "realize_opcount_threshold": 100}  # options of torch.compile
_SAME_BITS = (":4096:8", ":16:8")  # of cuBLAS's workspaces
_SHARE_FOR_PIXELS = 0.4  # of the GPU's free memory; the rest is for activations


def resolve_device(device: str) -> str:
    """cpu or cuda: `auto` is CUDA where there is one.

    Raises:
        InputError: cuda is asked for and there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: PyTorch sees no CUDA device on this machine; use device auto or cpu")
    return device


def configure(recipe: TrainingParams) -> None:
    """Set what PyTorch keeps for the whole process: threads, TF32, choice of kernels, determinism.

    `fp32` means it: cuDNN's own default would round the operands of convolutions to TF32.
    """
    keep_freed_memory()
    torch.set_num_threads(recipe.threads)
    if recipe.device == "cpu" and recipe.precision == "bf16" and not cpu_has_bf16():
        print(
            "training.precision: bf16: this CPU has no instructions for it (AVX-512 BF16, AMX), so it takes longer "
            "than fp32; `finetune calibrate` measures what is fastest here",
            flush=True,
        )
    if recipe.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = recipe.precision != "fp32"
        torch.backends.cudnn.benchmark = not recipe.deterministic
        torch.use_deterministic_algorithms(recipe.deterministic)
        if recipe.deterministic:
            _ask_cublas()
            # Every kernel here writes all of its output.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if recipe.compile != "none":
        import torch._inductor.config as inductor  # takes a second

        inductor.deterministic = recipe.deterministic  # else it chooses the order of sums by time


def _ask_cublas() -> None:
    """Set what PyTorch wants to be set for cuBLAS to give the same bits again.

    Raises:
        InputError: it is set to something else.
    """
    found = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _SAME_BITS[0])
    if found not in _SAME_BITS:
        raise InputError(
            f"CUBLAS_WORKSPACE_CONFIG: found '{found}' in the environment, expected {' or '.join(_SAME_BITS)} for "
            "training.deterministic: true; unset it"
        )


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a forward pass runs at `fp32`, `tf32` or `bf16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def memory_format(recipe: TrainingParams) -> torch.memory_format:
    return torch.channels_last if recipe.memory_format == "channels_last" else torch.contiguous_format


def move_to_device(model: MobileNetV2, recipe: TrainingParams) -> None:
    """Move a model to the recipe's device and memory format, and have its training pass compiled if it says so.

    Whole batches then go through `model(images)`; batches of other sizes through `model.forward`, which stays as it
    was, so that nothing is compiled twice.

    Raises:
        InputError: training.depthwise is triton on a GPU, or training.cpu_kernels native on a CPU, and this machine
            cannot compile them.
    """
    if recipe.depthwise == "triton" and recipe.device == "cuda" and (obstacle := depthwise.obstacle()):
        raise InputError(f"training.depthwise: triton: {obstacle}; mend that, or use torch")
    model.to(torch.device(recipe.device), memory_format=memory_format(recipe))
    if recipe.device == "cuda":
        gpu_convolutions.use_fast_forms(model, recipe.memory_format == "channels_last")
    change_layers(model, recipe)
    if recipe.compile != "none":
        _compile(model, recipe)


def _compile(model: MobileNetV2, recipe: TrainingParams) -> None:
    """Have `model(images)` compiled; for a GPU, so that fewer elementwise results are written to memory.

    By itself torch.compile writes a copy of what ReLU6 takes in place, and what two kernels use where it is worked out
    from more than four tensors, as in BatchNorm's backward pass (docs/performance.md).
    """
    if recipe.device != "cuda":
        model.compile(mode=recipe.compile, dynamic=False)
        return
    import torch._inductor as inductor  # takes a second

    for module in model.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = False
    model.compile(options={**inductor.list_mode_options(recipe.compile), **_FEWER_WRITTEN}, dynamic=False)


def change_layers(model: MobileNetV2, recipe: TrainingParams) -> None:
    """Have the layers compute, and keep for the backward pass, what the recipe says; weights and names stay."""
    if recipe.depthwise == "triton" and recipe.device == "cuda":
        depthwise.use_triton_depthwise(model)
    if recipe.precision == "bf16" and recipe.device == "cpu":
        cpu_gradients.use_float32_gradients(model)
    spare_activations(model, recipe)
    if recipe.takes_native_kernels:
        native_layers.use_native_layers(model)


def spare_activations(model: MobileNetV2, recipe: TrainingParams) -> None:
    """Have the layers keep for the backward pass what the recipe says; on a GPU, ReLU6 keeps what PyTorch keeps."""
    if recipe.lean_backward or (recipe.device == "cpu" and recipe.compile == "none"):
        lean_backward.keep_less(model, frozen=recipe.lean_backward)
    if recipe.activation_checkpointing:
        recomputation.checkpoint_blocks(model)


class Feed:
    """Makes the batches of a store's splits; pixels that two splits share are sent to the GPU once."""

    def __init__(self, recipe: TrainingParams) -> None:
        self._recipe = recipe
        self._resident: dict[str, Tensor | None] = {}

    def batches(self, split: Split) -> Batches:
        """Batches of one split as the recipe has them."""
        recipe, device = self._recipe, torch.device(self._recipe.device)
        common = (split, recipe.image_size, recipe.batch_size, device, memory_format(recipe), recipe.crop_pct)
        if device.type == "cpu":
            return (NativeBatches if recipe.takes_native_kernels else Batches)(*common)
        return DeviceBatches(*common, self._pixels(split, device), recipe.precision == "fp32")

    def _pixels(self, split: Split, device: torch.device) -> Tensor | None:
        key = str(getattr(split.pixels, "filename", id(split.pixels)))
        if key not in self._resident:
            fits = split.pixels.nbytes <= _SHARE_FOR_PIXELS * torch.cuda.mem_get_info(device)[0]
            self._resident[key] = upload(split, device) if fits else None
        return self._resident[key]


def upload(split: Split, device: torch.device) -> Tensor:
    """The pixel file of a split in the device's memory: uint8, flat."""
    pixels = torch.empty(split.pixels.shape, dtype=torch.uint8, device=device)
    chunk = 64 * 2**20  # bytes; a copy of the memory-mapped file in host memory, a piece at a time
    for start in range(0, len(pixels), chunk):
        pixels[start : start + chunk] = torch.from_numpy(split.pixels[start : start + chunk].copy()).to(device)
    return pixels
