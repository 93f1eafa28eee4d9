"""BatchNorm by this project's kernels for a CPU: by the mathematics in double precision, and beside PyTorch's."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, cross_entropy, relu6
from torchvision.models import MobileNetV2
from torchvision.ops.misc import Conv2dNormActivation

from finetune import cpu_kernels, kernel_library, model
from finetune.cpu_kernels import Norm
from finetune.device import autocast, move_to_device
from finetune.native_layers import use_native_layers
from finetune.params import TrainingParams
from finetune.records import provenance

pytestmark = [
    pytest.mark.skipif(not kernel_library.available(), reason="no C++ compiler"),
    pytest.mark.usefixtures("threads_put_back"),
]

# N, C, H, W: whole vectors of sixteen and eight channels; one block of rows and several; fewer rows than vectors.
SHAPES = [
    (2, 8, 1, 1),
    (3, 16, 5, 7),
    (4, 24, 9, 9),
    (2, 96, 30, 31),
    (5, 40, 13, 1),
    (2, 1280, 3, 3),
    (32, 32, 40, 40),
]
STEP = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}  # half of the distance between two values, relative


class Layer:
    """What goes into a BatchNorm, at random, and comes out of it; `offset`: of all means, in deviations."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, relu: bool, offset: float = 0.0) -> None:
        made = torch.Generator().manual_seed(0)
        channels, self.relu = shape[1], relu

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, generator=made)

        images = (draw(*shape) + draw(channels, 1, 1) + offset) * (0.1 + draw(channels, 1, 1).abs())
        self.x = images.to(dtype).contiguous(memory_format=torch.channels_last)
        self.weight, self.bias = 1 + draw(channels) / 2, 2 + draw(channels)
        self.mean, self.variance = draw(channels), draw(channels).abs()
        out = batch_norm(self.x.double(), None, None, self.weight.double(), self.bias.double(), True, 0.1, 1e-5)
        clear = ((out - 3).abs() - 3).abs() > 1e-4  # of 0 and 6, where rounding decides whether a gradient passes
        self.gradient = (draw(*shape) * clear).to(dtype).contiguous(memory_format=torch.channels_last)

    def native(self) -> dict[str, Tensor]:
        mean, variance = self.mean.clone(), self.variance.clone()
        norm = Norm(self.weight, self.bias, mean, variance)
        out, kept = cpu_kernels.batchnorm(self.x, norm, self.relu)
        of = cpu_kernels.batchnorm_backward(self.x, self.gradient, self.weight, kept, self.relu, in_place=False)
        return self._named(out, *of, mean, variance)

    def exact(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """In double precision by PyTorch, with ReLU6's gradient as of outputs rounded to the dtype; and how large that
        is of which they are sums or differences."""
        x, weight, bias = (t.double().requires_grad_() for t in (self.x, self.weight, self.bias))
        mean, variance = self.mean.double(), self.variance.double()
        out = batch_norm(x, mean, variance, weight, bias, True, 0.1, 1e-5)
        rounded = out.detach().to(self.x.dtype)
        passed = self.gradient.double() * (((rounded > 0) & (rounded < 6)) if self.relu else 1)
        out.backward(passed)
        assert x.grad is not None and weight.grad is not None and bias.grad is not None
        result = relu6(out) if self.relu else out
        normalised = (out - bias.view(1, -1, 1, 1)).detach() / weight.view(1, -1, 1, 1)
        per_value = (weight / (x.var((0, 2, 3), unbiased=False) + 1e-5).sqrt()).view(1, -1, 1, 1)
        of = result, passed * per_value, (passed * normalised).abs().sum((0, 2, 3)), passed.abs().sum((0, 2, 3))
        sizes = self._named(*(part.detach().abs().max() for part in (*of, mean, variance)))
        return self._named(result.detach(), x.grad, weight.grad, bias.grad, mean, variance), sizes

    @staticmethod
    def _named(*tensors: Tensor) -> dict[str, Tensor]:
        return dict(zip(("out", "of_x", "of_weight", "of_bias", "mean", "variance"), tensors, strict=True))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", STEP)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_what_the_mathematics_says(shape: tuple[int, ...], dtype: torch.dtype, relu: bool) -> None:
    layer = Layer(shape, dtype, relu)
    found, (exact, sizes) = layer.native(), layer.exact()
    for name, expected in exact.items():
        error = float((found[name].double() - expected).abs().max() / sizes[name])
        # What is stored is rounded once, and sums in float32 before that.
        stored = STEP[dtype] if name in ("out", "of_x") else STEP[torch.float32]
        assert error <= stored + 24 * STEP[torch.float32], name


def test_means_far_from_zero_cost_their_share_of_precision_and_no_more() -> None:
    layer = Layer((8, 32, 20, 20), torch.float32, relu=True, offset=1000.0)
    found, (exact, sizes) = layer.native(), layer.exact()
    for name, expected in exact.items():
        error = float((found[name].double() - expected).abs().max() / sizes[name])
        assert error <= (24 + 1000) * STEP[torch.float32], name


@pytest.mark.parametrize("far", [10.0, 100.0, 1000.0])
@pytest.mark.parametrize("images", [slice(0, 1), slice(0, None)], ids=["one", "all"])
def test_corners_that_are_far_from_the_rest_cost_it_none_of_its_precision(images: slice, far: float) -> None:
    shape = (64, 16, 28, 28)
    layer = Layer(shape, torch.float32, relu=False)
    layer.x[images, :, 0, 0] = far * layer.x.std()  # the first in memory
    exact = layer.exact()[0]["out"]
    error = (layer.native()["out"] - exact).abs()
    assert float(error[:, :, 1:].max()) <= (24 + far / 10) * 6 * STEP[torch.float32]


def test_it_is_nearer_to_that_than_pytorchs_own() -> None:
    layer = Layer((32, 32, 56, 56), torch.float32, relu=False)
    theirs = batch_norm(layer.x, None, None, layer.weight, layer.bias, True, 0.1, 1e-5)
    exact = layer.exact()[0]["out"]
    assert (layer.native()["out"] - exact).abs().max() < (theirs - exact).abs().max() / 2


@pytest.mark.parametrize("dtype", STEP)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_change_no_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer, found = Layer(shape, dtype, True), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(layer.native())
    assert all(torch.equal(one[name], found[0][name]) for one in found for name in one)


def test_in_place_the_gradient_is_the_same_bits() -> None:
    layer = Layer((3, 24, 9, 9), torch.float32, relu=True)
    norm = Norm(layer.weight, layer.bias, layer.mean, layer.variance)
    _, kept = cpu_kernels.batchnorm(layer.x, norm, True)
    given = layer.x, layer.gradient, layer.weight, kept, True
    elsewhere, *_ = cpu_kernels.batchnorm_backward(*given, in_place=False)
    here, *_ = cpu_kernels.batchnorm_backward(*given, in_place=True)
    assert here is layer.gradient
    assert torch.equal(here, elsewhere)


@pytest.mark.parametrize("dtype", STEP)
def test_relu6_passes_gradients_where_pytorchs_does(dtype: torch.dtype) -> None:
    # Of mean 0, and multiplied by their deviation: the values stay next to 0 and 6, and on neither.
    near = torch.cat([edge + torch.linspace(-0.05, 0.05, 2001) for edge in (0.0, 6.0)]).to(dtype)
    values = torch.cat([near - 3, 3 - near])
    scale = (values.double() ** 2).mean().sqrt().float()
    x = values.view(-1, 1, 1, 1).repeat(1, 8, 1, 1).contiguous(memory_format=torch.channels_last)
    weight, bias, gradient = scale.repeat(8), torch.full((8,), 3.00302), torch.ones_like(x)
    theirs = batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5)
    norm = Norm(weight, bias, torch.zeros(8), torch.ones(8))
    _, kept = cpu_kernels.batchnorm(x, norm, True)
    _, _, of_bias = cpu_kernels.batchnorm_backward(x, gradient, weight, kept, True, in_place=False)
    expected = float(((theirs > 0) & (theirs < 6))[:, 0].sum())
    assert float(of_bias[0]) == expected
    assert 0 < expected < len(x)


@pytest.mark.parametrize("dtype", STEP)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(broken: float, dtype: torch.dtype) -> None:
    layer = Layer((3, 16, 5, 7), dtype, relu=True)
    layer.x[1, 3, 2, 2] = broken
    found = layer.native()
    assert found["out"][:, 3].isnan().all()
    assert not found["mean"][3].isfinite()
    assert found["out"][:, :3].isfinite().all()


# Layers


def network(native: bool, **changes: object) -> MobileNetV2:
    settings = {"device": "cpu", "cpu_kernels": "native" if native else "torch"} | changes
    made = model.build(5, seed=0).train()
    move_to_device(made, TrainingParams.model_validate(settings))
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return made


def step(net: MobileNetV2, precision: str = "fp32") -> float:
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with autocast(torch.device("cpu"), precision):
        loss = cross_entropy(net(images.contiguous(memory_format=torch.channels_last)), torch.arange(8) % 5)
    loss.backward()
    return float(loss.detach())


def gradients(net: MobileNetV2) -> Tensor:
    found = [parameter.grad.flatten() for parameter in net.parameters() if parameter.grad is not None]
    return torch.cat(found)


def test_of_mobilenet_every_batchnorm_is_meant_and_names_stay() -> None:
    net, plain = network(True), network(False)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {type(module).__module__ for module in norms} == {"finetune.native_layers"}
    assert len(norms) == 52
    fused = [module for module in net.modules() if isinstance(module, Conv2dNormActivation)]
    assert {type(module).__name__ for module in fused} == {"_ConvNormReLU6"}
    assert len(fused) == 35
    assert list(net.state_dict()) == list(plain.state_dict())
    assert not any("native" in type(module).__module__ for module in plain.modules())


@pytest.mark.parametrize(
    ("precision", "loss_tolerance", "tolerance"), [("fp32", 1e-5, 2e-2), ("bf16", 2e-2, None)], ids=["fp32", "bf16"]
)
def test_a_network_trains_as_by_pytorchs_kernels(
    precision: str, loss_tolerance: float, tolerance: float | None
) -> None:
    ours, theirs = network(True, precision=precision), network(False, precision=precision)
    assert step(ours, precision) == pytest.approx(step(theirs, precision), rel=loss_tolerance)
    if tolerance is not None:  # random weights blow rounding up, bf16's to nothing that is alike
        expected = gradients(theirs)
        assert float((gradients(ours) - expected).norm() / expected.norm()) < tolerance
    for (name, ours_is), theirs_is in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        if name.endswith("num_batches_tracked"):
            assert ours_is == theirs_is == 1
        elif precision == "fp32":
            torch.testing.assert_close(ours_is, theirs_is, rtol=1e-3, atol=1e-4)


def test_evaluation_is_pytorchs_to_the_bit() -> None:
    ours, theirs = network(True).eval(), network(False).eval()
    images = torch.rand(3, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
    step(ours)
    step(theirs)
    assert torch.equal(gradients(ours), gradients(theirs))  # BatchNorm on running statistics


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("frozen", ["nothing", "weights of BatchNorm", "the first half"])
@pytest.mark.parametrize("keeping", ["lean_backward", "activation_checkpointing"])
def test_what_keeps_less_changes_no_bit(keeping: str, frozen: str, precision: str) -> None:
    nets = [network(True, precision=precision, **more) for more in ({}, {keeping: True})]
    for net in nets:
        for name, parameter in net.named_parameters():
            of_norm = parameter.dim() == 1 and name.endswith("weight")
            at_first = name.startswith("features") and int(name.split(".")[1]) < 9
            parameter.requires_grad_(
                not (of_norm if frozen == "weights of BatchNorm" else at_first and frozen != "nothing")
            )
        step(net, precision)
    whole, less = nets
    assert torch.equal(gradients(whole), gradients(less))
    assert len(gradients(whole)) > 0
    for one, other in zip(whole.buffers(), less.buffers(), strict=True):
        assert torch.equal(one, other)


def test_a_copy_is_as_the_first() -> None:
    first = network(True)
    second = copy.deepcopy(first)
    assert step(first) == step(second)
    assert torch.equal(gradients(first), gradients(second))


def test_given_twice_it_is_given_once() -> None:
    net = network(True)
    kinds = [type(module) for module in net.modules()]
    use_native_layers(net)
    assert [type(module) for module in net.modules()] == kinds


def block(channels: int = 16) -> Conv2dNormActivation:
    made = Conv2dNormActivation(8, channels, activation_layer=nn.ReLU6).to(memory_format=torch.channels_last)
    use_native_layers(made)  # type: ignore[arg-type]
    return made


def passes(made: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each call of the kernel in a forward pass, whether ReLU6 was in it."""
    called: list[bool] = []
    real = cpu_kernels.batchnorm

    def noted(*given: object) -> tuple[Tensor, Tensor]:
        called.append(bool(given[-1]))
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(cpu_kernels, "batchnorm", noted)
    made(images)
    return called


IMAGES = torch.rand(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)


def test_relu6_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes(block(), IMAGES, monkeypatch) == [True]


def test_layers_that_somebody_listens_to_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    made = block()
    made[2].register_forward_hook(lambda _, __, out: seen.append(out))
    assert passes(made, IMAGES, monkeypatch) == [False]
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("channels", "change", "images"),
    [
        (12, lambda norm: None, IMAGES),
        (16, lambda norm: norm.eval(), IMAGES),
        (16, lambda norm: setattr(norm, "momentum", None), IMAGES),
        (16, lambda norm: norm.double(), IMAGES),
        (16, lambda norm: None, torch.rand(1, 8, 6, 6)[:, :, :, ::2]),
    ],
    ids=["channels", "eval", "cumulative", "double", "one image, cut"],
)
def test_what_the_kernels_are_not_for_goes_pytorchs_way(
    channels: int, change: object, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = block(channels)
    made.train()
    change(made[1])  # type: ignore[operator]
    if made[1].weight.dtype == torch.float64:
        made.double()
        images = images.double()
    if not images.is_contiguous(memory_format=torch.channels_last):
        made.to(memory_format=torch.contiguous_format)
        images = images.contiguous()
    assert passes(made, images, monkeypatch) == []


def test_a_single_value_per_channel_is_refused_as_pytorch_does() -> None:
    made = block()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        made(torch.rand(1, 8, 1, 1).contiguous(memory_format=torch.channels_last))


def test_on_a_gpu_they_are_not_asked_for() -> None:
    from finetune.device import change_layers

    net = model.build(5, seed=0)
    change_layers(net, TrainingParams(device="cuda", cpu_kernels="native", compile="default"))
    assert not any("native" in type(module).__module__ for module in net.modules())


def test_what_compiled_them_is_in_the_provenance() -> None:
    native = TrainingParams(device="cpu", cpu_kernels="native")
    assert provenance(native)["compiler"] == cpu_kernels.load().compiler != ""
    for other in ({"device": "cpu"}, {"device": "cpu", "cpu_kernels": "torch"}):
        assert "compiler" not in provenance(TrainingParams.model_validate(other))
