"""Frozen layers keep next to nothing for the backward pass, and send the same gradients through."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy
from torchvision.models import MobileNetV2

from finetune.accounting import activation_bytes, kept_for_backward
from finetune.cpu_gradients import use_float32_gradients
from finetune.device import move_to_device
from finetune.lean_backward import average_pool, keep_less
from finetune.model import build
from finetune.optimizers import make_optimizer
from finetune.params import TrainingParams
from finetune.recomputation import checkpoint_blocks
from finetune.step import set_modes
from finetune.strategies import build_model, build_plan
from finetune.strategies.adjustments import adjusted
from finetune.strategies.plan import Phase

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])
Change = Callable[[MobileNetV2], None]


def nothing(model: MobileNetV2) -> None:
    pass


def recipe(precision: str = "fp32", size: int = 32) -> TrainingParams:
    return TrainingParams.model_validate(
        {"image_size": size, "batch_size": 4, "threads": 1, "precision": precision, "device": "cpu"}
    )


def made(plan: str, bn: str | None = None, **options: bool) -> tuple[Callable[[], MobileNetV2], Phase]:
    make = partial(build_model, 3, 0, plan, options)
    model, chosen = make(), recipe().model_copy(update={"bn": bn})
    return make, adjusted(model, build_plan(model, plan, options), chosen).phases[0]


def unlike_new(model: MobileNetV2) -> None:
    """Norms as a training may leave them: no factor of 1, no variance of 1, nothing at zero."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)


def passed(
    plan: str,
    change: Change,
    precision: str = "fp32",
    channels_last: bool = True,
    bn: str | None = None,
    images: Tensor = IMAGES,
    **options: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and the gradients of all that is trained."""
    torch.set_num_threads(1)
    make, phase = made(plan, bn, **options)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = make().to(memory_format=memory_format)  # type: ignore[call-overload]
    unlike_new(model)
    if precision == "bf16":
        use_float32_gradients(model)
    change(model)
    make_optimizer(model, phase, recipe(precision))
    set_modes(model, phase)
    model.classifier[0].p = 0.0
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = model(images.contiguous(memory_format=memory_format))
        loss = cross_entropy(logits, LABELS)
    loss.backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("plan", ["lite_residual", "norm_only", "norm_and_bias", "last_layer", "same_lr"])
def test_logits_and_gradients_are_the_same_bits(plan: str, precision: str, channels_last: bool) -> None:
    plain, gradients = passed(plan, nothing, precision, channels_last)
    lean, others = passed(plan, keep_less, precision, channels_last)
    assert torch.equal(lean, plain)
    assert list(others) == list(gradients)
    assert [name for name in gradients if not same(gradients[name], others[name], precision)] == []


def same(gradient: Tensor, other: Tensor, precision: str) -> bool:
    """In bf16, oneDNN may take another kernel where sides are 1, as strides differ that tell nothing there."""
    return torch.equal(gradient, other) or (
        precision == "bf16" and bool((gradient - other).norm() < 0.01 * other.norm())
    )


@pytest.mark.parametrize("options", [("bias_only", {}), ("lite_residual", {"bias": True})], ids=["bias", "lite"])
def test_biases_that_are_trained_alone_under_batch_statistics(options: tuple[str, dict[str, bool]]) -> None:
    plan, more = options
    plain, gradients = passed(plan, nothing, bn="train", **more)
    lean, others = passed(plan, keep_less, bn="train", **more)
    assert torch.equal(lean, plain)
    assert list(others) == list(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_biases_that_are_trained_alone_differ_by_rounding(precision: str, tolerance: float) -> None:
    plain, gradients = passed("bias_only", nothing, precision)
    lean, others = passed("bias_only", keep_less, precision)
    assert torch.equal(lean, plain)
    assert len(gradients) == len(others) == 52 + 2
    for name, gradient in gradients.items():
        assert (others[name] - gradient).norm() <= tolerance * gradient.norm(), name


def test_blocks_that_are_computed_again_give_the_same_bits() -> None:
    def both(model: MobileNetV2) -> None:
        keep_less(model)
        checkpoint_blocks(model)

    _, gradients = passed("lite_residual", nothing)
    _, others = passed("lite_residual", both)
    assert [name for name in gradients if not torch.equal(gradients[name], others[name])] == []


# What is kept


def kept(layers: nn.Module, x: Tensor, also: Iterable[Tensor] = ()) -> int:
    return kept_for_backward(lambda: layers(x), (*layers.parameters(), *layers.buffers(), *also))


def frozen(change: Change = keep_less) -> MobileNetV2:
    model = build(3, 0).eval().requires_grad_(False)
    change(model)
    return model


def test_a_frozen_block_keeps_a_bit_for_each_value_that_relu6_takes() -> None:
    # features.2 widens 16 channels to 96 at 8 x 8, then halves the sides: ReLU6 takes 96 x 8 x 8 and 96 x 4 x 4 values.
    x = torch.rand(2, 16, 8, 8, requires_grad=True)
    assert kept(frozen().features[2], x) == 2 * 96 * (8 * 8 + 4 * 4) // 8
    # PyTorch: what each BatchNorm takes, what it gives, and that cut, which the next convolution takes; what the last
    # BatchNorm takes, of 24 channels.
    assert kept(frozen(nothing).features[2], x, [x]) == 4 * 2 * (3 * 96 * (8 * 8 + 4 * 4) + 24 * 4 * 4)


def test_what_a_trained_convolution_takes_is_kept_once_without_bits_beside_it() -> None:
    model = frozen()
    model.features[2].conv[1][0].weight.requires_grad_(True)  # depthwise, takes 96 x 8 x 8
    x = torch.rand(2, 16, 8, 8, requires_grad=True)
    assert kept(model.features[2], x) == 4 * 2 * 96 * 8 * 8 + 2 * 96 * 4 * 4 // 8


def test_phases_may_freeze_and_unfreeze() -> None:
    model = frozen()
    x = torch.rand(2, 16, 8, 8, requires_grad=True)
    model.requires_grad_(True)
    # What each BatchNorm takes, and each convolution, but for x.
    assert kept(model.features[2], x, [x]) == 4 * 2 * (2 * 96 * (8 * 8 + 4 * 4) + 24 * 4 * 4)
    model.requires_grad_(False)
    assert kept(model.features[2], x) == 2 * 96 * (8 * 8 + 4 * 4) // 8


def test_full_fine_tuning_keeps_a_copy_less_of_what_relu6_takes() -> None:
    taken: list[int] = []

    def counting(model: MobileNetV2) -> None:
        for module in model.modules():
            if isinstance(module, nn.ReLU6):
                module.register_forward_hook(lambda _, inputs, output: taken.append(output.numel()))

    def of(change: Change) -> int:
        make, phase = made("same_lr")
        as_pytorch_does = recipe().model_copy(update={"device": "cuda"})
        return activation_bytes(lambda: changed(make(), change), [phase], as_pytorch_does, 4)

    before = of(counting)
    assert len(taken) == 35
    assert of(keep_less) == before - 4 * sum(taken) + taken[-1] // 8  # no convolution takes the last


def changed(model: MobileNetV2, change: Change) -> MobileNetV2:
    change(model)
    return model


def test_activations_grow_in_the_order_of_tinytls_paper() -> None:
    ladder = [made("last_layer"), made("bias_only"), made("lite_residual"), made("lite_residual", bias=True)]
    ladder += [made("norm_only"), made("same_lr")]
    counts = [
        activation_bytes(lambda make=make: changed(make(), keep_less), [phase], recipe(size=96), 8)  # type: ignore[misc]
        for make, phase in ladder
    ]
    assert all(less < more for less, more in pairwise(counts)), counts
    assert counts[3] < 0.1 * counts[-1]


def test_unless_frozen_layers_are_to_keep_less_relu6_alone_does() -> None:
    x = torch.rand(2, 16, 8, 8, requires_grad=True)
    # What each BatchNorm takes, the last one's 24 channels too, and each convolution, but for x.
    expected = 4 * 2 * (2 * 96 * (8 * 8 + 4 * 4) + 24 * 4 * 4)
    assert kept(frozen(partial(keep_less, frozen=False)).features[2], x, [x]) == expected


@pytest.mark.parametrize("lean_backward", [False, True])
def test_a_recipe_says_whether_frozen_layers_keep_less(lean_backward: bool) -> None:
    own = recipe().model_copy(update={"lean_backward": lean_backward})
    model = frozen(lambda network: move_to_device(network, own))
    x = torch.rand(2, 16, 8, 8, requires_grad=True)
    few, many = 2 * 96 * (8 * 8 + 4 * 4) // 8, 4 * 2 * (2 * 96 * (8 * 8 + 4 * 4) + 24 * 4 * 4)
    assert kept(model.features[2], x, [x]) == (few if lean_backward else many)
    make, phase = made("bias_only")
    counted = activation_bytes(make, [phase], own, 4)
    assert (counted < activation_bytes(make, [phase], recipe(), 4) / 20) == lean_backward


@pytest.mark.parametrize("plan", ["lite_residual", "bias_only", "same_lr"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_relu6_that_keeps_less_alone_gives_the_same_bits(plan: str, precision: str) -> None:
    plain, gradients = passed(plan, nothing, precision)
    lean, others = passed(plan, partial(keep_less, frozen=False), precision)
    assert torch.equal(lean, plain)
    assert [name for name in gradients if not same(gradients[name], others[name], precision)] == []


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("plan", ["same_lr", "norm_only"])
def test_the_gradient_of_the_pooling_is_laid_out_as_the_map_that_it_is_of(plan: str, frozen: bool) -> None:
    """At 32 px that map is a single pixel. At 64 PyTorch lays its gradient out otherwise, which slows BatchNorm."""
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def lay_out(model: MobileNetV2) -> None:
        def as_it_is(_: nn.Module, __: Any, out: Tensor) -> None:
            out.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))

        model.features[-1][2].register_forward_hook(as_it_is)

    lean, others = passed(plan, partial(keep_less, frozen=frozen), images=images)
    laid_out, expected = passed(plan, lay_out, images=images)
    assert torch.equal(lean, laid_out)
    assert [name for name in expected if not torch.equal(others[name], expected[name])] == []
    _, plain = passed(plan, nothing, images=images)
    last = [name for name in plain if name.startswith("features.18.")]  # rounding grows further on
    assert [name for name in last if (others[name] - plain[name]).norm() > 1e-5 * plain[name].norm()] == []


def test_pooling_keeps_nothing() -> None:
    assert kept_for_backward(lambda: average_pool(torch.rand(2, 8, 7, 7, requires_grad=True)), ()) == 0


# What each layer computes


def test_relu6_passes_what_is_not_cut_whatever_the_number_of_values() -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 5.5, 6.0, 7.0, float("nan"), 3.0, 2.0, 8.0], requires_grad=True)
    relu = frozen().features[0][2]
    relu(x.clone()).backward(torch.arange(1.0, 11.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 3, 4, 0, 0, 7, 8, 9, 0]


def test_relu6_before_a_trained_convolution_passes_the_same() -> None:
    model = frozen()
    model.features[1].conv[0][0].weight.requires_grad_(True)
    x = torch.tensor([-1.0, 0.0, 0.5, 5.5, 6.0, 7.0, float("nan")], requires_grad=True)
    model.features[0][2](x.clone()).backward(torch.arange(1.0, 8.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 3, 4, 0, 0, 7]


def test_relu6_takes_values_in_the_order_of_their_memory() -> None:
    x = torch.linspace(-4, 10, 2 * 3 * 5).view(2, 5, 3).transpose(1, 2).requires_grad_()
    frozen().features[0][2](x.clone()).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, ((x > 0) & (x < 6)).float())


@pytest.mark.parametrize("sides", [(6, 6), (7, 5), (1, 1), (1, 2)])
def test_pooling_is_the_mean_of_what_there_is(sides: tuple[int, int]) -> None:
    values = torch.rand(2, 3, *sides).contiguous(memory_format=torch.channels_last)
    x, y = values.clone().requires_grad_(), values.clone().requires_grad_()
    pooled, expected = average_pool(x), avg_pool2d(y, 2, ceil_mode=True)
    weights = torch.rand(expected.shape)
    pooled.backward(weights)
    expected.backward(weights)
    assert torch.equal(pooled, expected)
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(x.grad, y.grad)


def test_the_mean_at_an_odd_end_is_of_fewer_values() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert average_pool(x).flatten().tolist() == [2.0, 3.5, 6.5, 8.0]  # of 0 1 3 4, of 2 5, of 6 7, of 8


def test_a_gradient_of_a_gradient_is_refused() -> None:
    x = torch.rand(2, 16, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(frozen().features[2](x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# Where it is


def test_the_names_of_tensors_stay() -> None:
    model = build(3, 0)
    before = list(model.state_dict())
    keep_less(model)
    assert list(model.state_dict()) == before


def test_a_copy_looks_at_its_own_layers() -> None:
    model = frozen()
    other = copy.deepcopy(model)
    model.requires_grad_(True)
    x = torch.rand(2, 16, 8, 8, requires_grad=True)
    assert kept(other.features[2], x) == 2 * 96 * (8 * 8 + 4 * 4) // 8


def test_layers_that_others_have_changed_are_left_alone() -> None:
    model = build(3, 0)
    move_to_device(model, recipe("bf16"))
    before = [type(module) for module in model.modules() if type(module).__name__ == "StridedConv2d"]
    keep_less(model)
    assert [type(module) for module in model.modules() if type(module).__name__ == "StridedConv2d"] == before
    assert len(before) == 4
