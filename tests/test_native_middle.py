"""What lies between an inverted residual's pointwise convolutions, by this project's kernels for a CPU: by the
mathematics in double precision, and beside PyTorch's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, cross_entropy, relu6
from torchvision.models import MobileNetV2

from finetune import cpu_kernels, kernel_library, model
from finetune.accounting import kept_for_backward
from finetune.cpu_kernels import Norm
from finetune.device import autocast, move_to_device
from finetune.params import TrainingParams

pytestmark = [
    pytest.mark.skipif(not kernel_library.available(), reason="no C++ compiler"),
    pytest.mark.usefixtures("threads_put_back"),
]

# N, C, H, W, stride: whole vectors of sixteen and eight channels; odd and even sides; rows of one pixel, single rows.
SHAPES = [
    (2, 16, 5, 7, 1),
    (3, 24, 9, 9, 2),
    (2, 96, 14, 13, 2),
    (4, 8, 1, 1, 1),
    (5, 40, 1, 13, 2),
    (5, 40, 12, 1, 1),
    (3, 16, 2, 2, 2),
    (2, 960, 7, 7, 1),
    (8, 32, 40, 40, 1),
    (8, 32, 40, 40, 2),
]
STEP = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}  # half of the distance between two values, relative
NAMES = "out", "of_x", "of_taps", "of_weight", "of_bias", "of_weight2", "of_bias2", "mean", "variance", "mean2", "var2"


class Layers:
    """What goes into them, at random, and comes out; no value is where rounding decides whether ReLU6 cuts it."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, offset: float = 0.0, near_six: tuple[int, ...] = ()
    ) -> None:
        made = torch.Generator().manual_seed(0)
        *size, self.stride = shape
        channels = size[1]

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, generator=made)

        self.weights = [(1 + draw(channels) / 2, 2 + draw(channels)) for _ in range(2)]
        for layer in near_six:  # nearly all that it makes
            self.weights[layer] = torch.full((channels,), 0.02), torch.full((channels,), 6.0)
        self.taps = draw(channels, 1, 3, 3) / 2
        self.running = [(draw(channels), draw(channels).abs()) for _ in range(2)]
        x = (draw(*size) + draw(channels, 1, 1) + offset) * (0.1 + draw(channels, 1, 1).abs())
        self.x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        while (near := self.from_edges(self.outputs()[0]) < 1e-3).any():
            self.x = torch.where(near, self.x * 1.02, self.x)
        last = self.outputs()[1]
        clear = self.from_edges(last) > (1e-3 if dtype == torch.float32 else 0.1)  # what is convolved is rounded
        self.gradient = (draw(*last.shape) * clear).to(dtype).contiguous(memory_format=torch.channels_last)

    def outputs(self, *leaves: Tensor) -> tuple[Tensor, Tensor]:
        """Of both BatchNorms, in double precision."""
        x, taps, *rest = leaves or self.leaves()
        first = batch_norm(x, None, None, rest[0], rest[1], True, 0.1, 1e-5)
        convolved = conv2d(relu6(first), taps, None, self.stride, 1, 1, len(taps))
        return first, batch_norm(convolved, None, None, rest[2], rest[3], True, 0.1, 1e-5)

    @staticmethod
    def from_edges(values: Tensor) -> Tensor:
        """How far they are from 0 and 6."""
        return ((values - 3).abs() - 3).abs()

    def leaves(self) -> list[Tensor]:
        return [t.double() for t in (self.x, self.taps, *self.weights[0], *self.weights[1])]

    def native(self) -> dict[str, Tensor]:
        running = [(mean.clone(), variance.clone()) for mean, variance in self.running]
        norms = [Norm(*weights, *statistics) for weights, statistics in zip(self.weights, running, strict=True)]
        made = cpu_kernels.middle(self.x, self.taps, self.stride, *norms)
        layers = self.x, self.taps, self.stride, [norm.weight for norm in norms]
        of_x, of_taps, first, second = cpu_kernels.middle_backward(*layers, made.convolved, made.kept, self.gradient)
        found = made.out, of_x, of_taps, *first, *second, *running[0], *running[1]
        return dict(zip(NAMES, found, strict=True))

    def by_pytorch(self, leaves: list[Tensor], statistics: torch.dtype) -> dict[str, Tensor]:
        running = [
            (mean.to(statistics, copy=True), variance.to(statistics, copy=True)) for mean, variance in self.running
        ]
        x, taps, *rest = leaves = [leaf.requires_grad_() for leaf in leaves]
        first = relu6(batch_norm(x, *running[0], rest[0], rest[1], True, 0.1, 1e-5))
        convolved = conv2d(first, taps.to(first.dtype), None, self.stride, 1, 1, len(taps))
        out = relu6(batch_norm(convolved, *running[1], rest[2], rest[3], True, 0.1, 1e-5))
        found = torch.autograd.grad(out, leaves, self.gradient.to(out.dtype))
        return dict(zip(NAMES, (out.detach(), *found, *running[0], *running[1]), strict=True))

    def exact(self) -> dict[str, Tensor]:
        return self.by_pytorch(self.leaves(), torch.float64)

    def pytorchs(self) -> dict[str, Tensor]:
        leaves = self.x, self.taps, *self.weights[0], *self.weights[1]
        return self.by_pytorch([leaf.clone() for leaf in leaves], torch.float32)


@pytest.mark.parametrize("dtype", STEP)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_what_the_mathematics_says(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layers = Layers(shape, dtype)
    ours, theirs, exact = layers.native(), layers.pytorchs(), layers.exact()
    for name, expected in exact.items():
        assert ours[name].shape == expected.shape
        errors = [float((found[name].double() - expected).norm() / expected.norm()) for found in (ours, theirs)]
        assert errors[0] <= max(3 * errors[1], 8 * STEP[dtype]), name


def test_means_far_from_zero_cost_their_share_of_precision_and_no_more() -> None:
    layers = Layers((8, 32, 20, 20, 1), torch.float32, offset=1000.0)
    ours, exact = layers.native(), layers.exact()
    for name, expected in exact.items():
        error = float((ours[name].double() - expected).norm() / expected.norm())
        assert error <= 1000 * 24 * STEP[torch.float32], name


def test_in_bf16_gradients_pass_where_what_the_convolution_took_was_less_than_six() -> None:
    layers = Layers((8, 32, 12, 12, 1), torch.bfloat16, near_six=(0,))
    found, expected = layers.native()["of_bias"].double(), layers.exact()["of_bias"]
    assert float((found - expected).norm() / expected.norm()) <= 0.05


def test_in_bf16_gradients_pass_where_what_came_out_was_less_than_six() -> None:
    layers = Layers((8, 32, 12, 12, 1), torch.bfloat16, near_six=(1,))
    layers.gradient = torch.ones_like(layers.gradient)
    found = layers.native()
    passed = (found["out"] < 6).sum((0, 2, 3))
    assert 100 < float(passed.min()) < float(passed.max()) < 1000
    assert torch.equal(found["of_bias2"], passed.float())


@pytest.mark.parametrize("dtype", STEP)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_change_no_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layers, found = Layers(shape, dtype), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(layers.native())
    assert all(torch.equal(one[name], found[0][name]) for one in found for name in NAMES)


@pytest.mark.parametrize("dtype", STEP)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(broken: float, dtype: torch.dtype) -> None:
    layers = Layers((3, 16, 5, 7, 1), dtype)
    layers.x[1, 3, 2, 2] = broken
    found = layers.native()
    assert found["out"][:, 3].isnan().all()
    assert found["out"][:, :3].isfinite().all()
    assert not found["mean"][3].isfinite()
    assert not found["mean2"][3].isfinite()
    assert found["of_x"][:, 3].isnan().all()
    assert found["of_x"][:, :3].isfinite().all()


def test_a_gradient_that_is_not_finite_is_not_hidden() -> None:
    layers = Layers((3, 16, 5, 7, 1), torch.float32)
    layers.weights[1] = torch.full((16,), 0.1), torch.full((16,), 3.0)  # nothing is cut
    layers.gradient[1, 3, 2, 2] = float("nan")
    found = layers.native()
    assert found["of_bias2"][3].isnan()
    assert found["of_x"][:, 3].isnan().all()
    assert found["of_x"][:, :3].isfinite().all()


# Layers


def network(**changes: object) -> MobileNetV2:
    made = model.build(5, seed=0).train()
    move_to_device(made, TrainingParams.model_validate({"device": "cpu", "cpu_kernels": "native"} | changes))
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return made


def middles(net: MobileNetV2, monkeypatch: pytest.MonkeyPatch, precision: str = "fp32") -> int:
    """How many inverted residuals took the kernel in a step."""
    called: list[int] = []
    real = cpu_kernels.middle

    def noted(x: Tensor, taps: Tensor, stride: int, *norms: Norm) -> cpu_kernels.Middle:
        called.append(stride)
        return real(x, taps, stride, *norms)

    monkeypatch.setattr(cpu_kernels, "middle", noted)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with autocast(torch.device("cpu"), precision):
        loss = cross_entropy(net(images.contiguous(memory_format=torch.channels_last)), torch.arange(4))
    if loss.requires_grad:
        loss.backward()
    return len(called)


def of_middles(net: MobileNetV2) -> list[nn.Sequential]:
    found = [module for module in net.modules() if type(module).__name__ == "_ExpandedLayers"]
    return [module for module in found if isinstance(module, nn.Sequential)]


@pytest.mark.parametrize("more", [{}, {"lean_backward": True}, {"activation_checkpointing": True}], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_that_expand_take_it(precision: str, more: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(precision=precision, **more)
    assert len(of_middles(net)) == 16
    again = 2 if "activation_checkpointing" in more else 1
    assert middles(net, monkeypatch, precision) == 16 * again
    for layers in of_middles(net):
        counts = [module.num_batches_tracked for module in layers.modules() if isinstance(module, nn.BatchNorm2d)]
        assert counts == [1, 1, 1]


def frozen(layers: nn.Sequential) -> None:
    layers[1][1].bias.requires_grad_(False)  # type: ignore[index, union-attr]


def listened_to(layers: nn.Sequential) -> None:
    layers[1][0].register_forward_hook(lambda *_: None)  # type: ignore[index, union-attr]


def on_running_statistics(layers: nn.Sequential) -> None:
    layers[0][1].eval()  # type: ignore[index, union-attr]


def normalised_otherwise(layers: nn.Sequential) -> None:
    layers[0][1] = nn.GroupNorm(1, layers[0][1].num_features)  # type: ignore[index, operator, union-attr, arg-type]


def convolved_otherwise(layers: nn.Sequential) -> None:
    class Other(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    layers[1][0].__class__ = Other  # type: ignore[index, union-attr]


def convolved_further_apart(layers: nn.Sequential) -> None:
    layers[1][0].padding = layers[1][0].dilation = (2, 2)  # type: ignore[index, union-attr, assignment]


def activated_otherwise(layers: nn.Sequential) -> None:
    layers[1][2] = nn.SiLU()  # type: ignore[index, operator]


def not_activated(layers: nn.Sequential) -> None:
    layers[0][2] = nn.Identity()  # type: ignore[index, operator]


def longer_inside(layers: nn.Sequential) -> None:
    layers[0].append(nn.Dropout())  # type: ignore[operator]


def longer(layers: nn.Sequential) -> None:
    layers.append(nn.Identity())


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (frozen, 15),
        (listened_to, 15),
        (on_running_statistics, 15),
        (normalised_otherwise, 15),
        (convolved_otherwise, 15),
        (convolved_further_apart, 15),
        (activated_otherwise, 15),
        (not_activated, 15),
        (longer_inside, 15),
        (longer, 16),
    ],
)
def test_layers_that_are_not_as_the_kernel_has_them_are_called_one_by_one(
    change: Callable[[nn.Sequential], None], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    change(of_middles(net)[5])
    assert middles(net, monkeypatch) == left


def test_a_gradient_that_lies_otherwise_in_memory_is_laid_out_anew() -> None:
    found = []
    for layout in (torch.channels_last, torch.contiguous_format):
        layers = of_middles(network())[5]
        x = torch.rand(2, 32, 6, 6, generator=torch.Generator().manual_seed(1))
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        out = layers[:2](x)
        assert type(out.grad_fn).__name__ == "_MiddleBackward"
        gradient = torch.rand(out.shape, generator=torch.Generator().manual_seed(2)).contiguous(memory_format=layout)
        found.append(torch.autograd.grad(out, x, gradient)[0])
    assert torch.equal(*found)


def test_in_evaluation_none_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert middles(network().eval(), monkeypatch) == 0


def test_as_one_they_keep_less_than_one_by_one() -> None:
    recipe = TrainingParams(device="cpu", cpu_kernels="native", image_size=32, batch_size=4)
    bytes_kept = []
    for apart in (False, True):
        net = network()
        for layers in of_middles(net) if apart else ():
            listened_to(layers)
        images = torch.rand(4, 3, recipe.image_size, recipe.image_size).contiguous(memory_format=torch.channels_last)
        bytes_kept.append(kept_for_backward(lambda net=net, images=images: net(images).sum(), net.parameters()))
    assert bytes_kept[0] < 0.8 * bytes_kept[1]
