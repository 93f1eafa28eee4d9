"""torchvision's MobileNetV2 as ordered blocks plus a fresh head; loads and checks weights."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, MobileNetV2, mobilenet_v2

from finetune.errors import InputError, reason, suggest

# From the image to the logits; the strategies speak of depth in these.
BLOCKS = (*(f"features.{i}" for i in range(19)), "classifier")


def block_of(tensor: str) -> str:
    """The block that a tensor of the state dict belongs to: features.17.conv.0.0.weight -> features.17.

    What a plan adds outside `features` is a block by itself: policy.0.weight -> policy.
    """
    first, _, rest = tensor.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first == "features" else first


def build(classes: int, seed: int) -> MobileNetV2:
    """A MobileNetV2 1.0 (Sandler et al. 2018, arXiv 1801.04381) with seeded random weights and `classes` outputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mobilenet_v2(weights=None, num_classes=classes)


def load_backbone(model: MobileNetV2, path: Path) -> None:
    """Put the pretrained tensors of `path` (written by `prepare_backbone`) under the model's fresh head, and beneath
    what a strategy has added.

    Raises:
        InputError: the file is unreadable, or not MobileNetV2's.
    """
    _, unexpected = model.load_state_dict(check_backbone(read_state_dict(path), str(path)), strict=False)
    assert not unexpected


def load_weights(model: MobileNetV2, path: Path) -> None:
    """Load a run's model.safetensors, which must fit the model exactly.

    Raises:
        InputError: the file is unreadable, or a tensor in it is missing, surplus or misshaped.
    """
    state = read_state_dict(path)
    _check(state, model.state_dict(), str(path), "bring the weights of this very run")
    model.load_state_dict(state)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors`, or from `.pth` without running any code in it.

    Raises:
        InputError: no such file, another kind of file, or one that cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a MobileNetV2 state dict (.safetensors or .pth)")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in (".pth", ".pt"):
            state = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(state, Mapping) and all(isinstance(v, Tensor) for v in state.values()):
                return dict(state)
            raise InputError(f"{path}: found {type(state).__name__}, expected a plain state dict of tensors; save that")
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({reason(error)}); bring a whole file") from None
    except Exception as error:  # torch.load raises pickle's own errors, some of them bare Exceptions
        raise InputError(
            f"{path}: refused by weights_only loading ({type(error).__name__}); save a state dict"
        ) from None
    raise InputError(f"{path}: found a {path.suffix or 'nameless'} file, expected .safetensors or .pth")


def check_backbone(state: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The backbone's tensors of a MobileNetV2 state dict, as fp32, checked one by one.

    The head (classifier.1) may be there with any number of classes, and is dropped; BatchNorm's
    `num_batches_tracked`, which no forward pass reads, may be absent.

    Raises:
        InputError: a tensor is missing, surplus, misshaped or not finite; it is named.
    """
    head = {"classifier.1.weight", "classifier.1.bias"}
    with torch.device("meta"):
        expected = {k: v for k, v in mobilenet_v2(weights=None).state_dict().items() if k not in head}
    state = {k: v for k, v in state.items() if k not in head}
    for name in expected:
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.tensor(0))
    _check(state, expected, origin, "bring weights of mobilenet_v2 at width 1.0, under torchvision's names")
    return {k: state[k].to(expected[k].dtype).contiguous() for k in expected}


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str, mend: str) -> None:
    for name, tensor in expected.items():
        if name not in state:
            raise InputError(f"{origin}: tensor {name} is missing; {mend}")
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{origin}: tensor {name} has shape {list(state[name].shape)}, expected {list(tensor.shape)}; {mend}"
            )
        if state[name].is_floating_point() and not state[name].isfinite().all():
            raise InputError(f"{origin}: tensor {name} holds values that are not finite; bring whole weights")
    for name in state:
        if name not in expected:
            near, _, known = suggest(name, expected).partition(" known: ")
            raise InputError(f"{origin}: tensor {name} is not one of the network's; {near if known else mend}")


def prepare_backbone(source: str, weights: str, sample: Path, out: Path) -> None:
    """Bring the weights that params.yaml's `backbone` names to `out`, checked, as fp32 safetensors.

    Args:
        source: `sample`, `torchvision`, or the path of a state dict.
        weights: the enum's name for `torchvision`, such as MobileNet_V2_Weights.IMAGENET1K_V1.
        sample: where the sample backbone lies.
        out: the file to write; it appears only when whole.

    Raises:
        InputError: the weights cannot be had, or are not MobileNetV2's; or the file cannot be written.
    """
    if source == "torchvision":
        state = _from_torchvision(weights)
    else:
        state = read_state_dict(sample if source == "sample" else Path(source).expanduser())
    origin = weights if source == "torchvision" else source
    state = check_backbone(state, f"backbone.source {origin}")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.aside")
    try:
        aside.write_bytes(save(state, {"source": origin}))
        aside.replace(out)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); make room or mend its folder's permissions"
        ) from None
    finally:
        aside.unlink(missing_ok=True)


def _from_torchvision(name: str) -> Mapping[str, Tensor]:
    known = {f"MobileNet_V2_Weights.{w.name}": w for w in MobileNet_V2_Weights}
    if name not in known:
        raise InputError(
            f"params.yaml: backbone.weights: found '{name}', expected torchvision's enum name; {suggest(name, known)}"
        )
    weights = known[name]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise InputError(
            f"{weights.url}: could not be fetched ({error}); bring the file to {cached}, or set backbone.source in "
            "params.yaml to the path of a local state dict"
        ) from None


def digest(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_batchnorm(module: nn.Module) -> bool:
    """By type, never by name: MobileNetV2's BatchNorm layers have none in their names."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def is_depthwise_3x3(layer: nn.Conv2d) -> bool:
    """Whether it is as in MobileNetV2's blocks: a pixel of zeros around, stride 1 or 2, without bias."""
    return (
        layer.groups == layer.in_channels == layer.out_channels
        and (layer.kernel_size, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1))
        and layer.stride in ((1, 1), (2, 2))
        and layer.padding_mode == "zeros"
        and layer.bias is None
    )
