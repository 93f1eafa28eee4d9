"""TinyTL's lite residual modules: nothing at first, and what they compute, worked out another way."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models import MobileNetV2

from finetune.accounting import kept_for_backward
from finetune.errors import InputError
from finetune.model import BLOCKS, block_of, build, load_backbone, load_weights
from finetune.optimizers import make_optimizer
from finetune.params import TrainingParams
from finetune.recomputation import checkpoint_blocks
from finetune.step import set_modes
from finetune.strategies import build_model, build_plan
from finetune.strategies.lite_residual import Lite
from finetune.strategies.plan import audit

BLOCKS_WITH = [f"features.{i}" for i in range(1, 18)]


def adapted(**options: Any) -> MobileNetV2:
    return build_model(3, 0, "lite_residual", options)


def awake(model: MobileNetV2) -> MobileNetV2:
    """Modules that add something."""
    torch.manual_seed(2)
    for module in model.modules():
        if isinstance(module, Lite):
            nn.init.uniform_(module.last_norm.weight, 0.5, 1.5)
            nn.init.normal_(module.last_norm.bias)
    return model


def images(side: int, number: int = 2) -> torch.Tensor:
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(side))


# Step 0


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("side", [16, 32, 48, 96, 224])  # 224: maps of 7 x 7, of which 4 x 4 are pooled; 32: of 1 x 1
def test_before_the_first_step_it_is_the_frozen_network(
    side: int, precision: str, memory_format: torch.memory_format
) -> None:
    plain, lite = build(3, 0).eval(), adapted().eval()
    shown = images(side).contiguous(memory_format=memory_format)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected, logits = plain(shown), lite(shown)
    assert torch.equal(logits, expected)
    assert logits.dtype == expected.dtype


def test_what_is_learnt_first_is_how_much_to_add() -> None:
    model = adapted().eval()
    cross_entropy(model(images(32)), torch.tensor([0, 1])).backward()
    for block in BLOCKS_WITH:
        lite = model.get_submodule(f"{block}.conv.lite")
        assert lite.last_norm.weight.grad.any()
        assert not lite.conv.weight.grad.any()
        assert not lite.project.weight.grad.any()


# What it computes


def normed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Group normalisation of one image, channels x rows x columns, 8 channels a group."""
    groups = x.reshape(len(x) // 8, -1)
    flat = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-5)
    return flat.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize(
    "spread",  # a row a pixel: its shares of the 2 that are resized; counted in those, its centre is
    [
        [[1, 0], [0.5, 0.5], [0, 1]],  # at -1/6, 1/2 and 7/6
        [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]],  # at -1/4, 1/4, 3/4 and 5/4
    ],
    ids=["odd", "even"],
)
def test_a_module_pools_convolves_norms_projects_and_resizes(spread: list[list[float]]) -> None:
    torch.manual_seed(0)
    side = len(spread)
    lite = Lite(8, 16, stride=1, kernel=1, groups=2)
    for norm in (lite.norm, lite.last_norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    x = torch.rand(1, 8, side, side)
    weights = {name: parameter.detach().double().numpy() for name, parameter in lite.named_parameters()}
    given = x[0].double().numpy()

    pooled = np.empty((8, 2, 2))  # of 3 x 3: squares of 4, 2, 2 and 1 values; of 4 x 4: of 4 each
    for row in range(2):
        for column in range(2):
            pooled[:, row, column] = given[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2))
    both = np.zeros((8, 8))  # two groups: the first four channels see the first four alone
    both[:4, :4], both[4:, 4:] = weights["conv.weight"][:4, :, 0, 0], weights["conv.weight"][4:, :, 0, 0]
    hidden = normed(np.einsum("oi,irc->orc", both, pooled), weights["norm.weight"], weights["norm.bias"]).clip(0)
    small = np.einsum("oi,irc->orc", weights["project.weight"][:, :, 0, 0], hidden)
    small = normed(small, weights["last_norm.weight"], weights["last_norm.bias"])
    expected = np.einsum("ar,bc,orc->oab", spread, spread, small)

    np.testing.assert_allclose(lite(x, [side, side])[0].detach().numpy(), expected, atol=1e-5)


def test_a_block_is_its_own_layers_and_the_module_and_the_skip() -> None:
    model = awake(adapted()).eval()
    block, x = model.features[5], torch.rand(2, 32, 7, 7)
    own = x
    for layer in list(block.conv)[:-1]:
        own = layer(own)
    torch.testing.assert_close(block(x), x + own + block.conv.lite(x, [7, 7]))


def test_a_strided_block_pools_and_strides() -> None:
    lite = adapted().features[14].conv.lite
    assert lite.conv.stride == (2, 2)
    assert lite(torch.rand(1, 96, 14, 14), [7, 7]).shape == (1, 160, 7, 7)


# What is trained


@pytest.mark.parametrize("options", [{}, {"kernel": 3, "groups": 8}])
def test_a_modules_size_is_that_of_its_layers(options: dict[str, int]) -> None:
    kernel, groups = options.get("kernel", 5), options.get("groups", 2)
    lite = adapted(**options).features[17].conv.lite  # 160 channels in, 320 out
    expected = 160 * 160 * kernel**2 // groups + 2 * 160 + 160 * 320 + 2 * 320
    assert sum(parameter.numel() for parameter in lite.parameters()) == expected


def test_every_inverted_residual_has_a_module_and_nothing_else_has() -> None:
    added = set(adapted().state_dict()) - set(build(3, 0).state_dict())
    assert {block_of(name) for name in added} == set(BLOCKS_WITH)
    assert all(".conv.lite." in name for name in added)
    assert set(build(3, 0).state_dict()) < set(adapted().state_dict())


@pytest.mark.parametrize(("bias", "trained"), [(False, 2 + 17 * 6), (True, 2 + 17 * 5 + 52)])
def test_modules_and_head_are_trained_and_biases_if_asked_for(bias: bool, trained: int) -> None:
    model = adapted(bias=bias)
    rows = audit(model, build_plan(model, "lite_residual", {"bias": bias}), 1.0, 0.1)
    moving = [row["tensor"] for row in rows if not row["frozen"]]
    own = [name for name in moving if ".lite." not in name and not name.startswith("classifier.")]
    assert len(moving) == trained
    assert own == [f"{n}.bias" for n, m in model.named_modules() if bias and isinstance(m, nn.BatchNorm2d)]
    assert any(name.endswith("last_norm.bias") for name in moving) != bias
    assert not any(row["batchnorm"] == "train" for row in rows if row["kind"] == "buffer")


def test_biases_are_not_pulled_to_zero() -> None:
    model = adapted(bias=True)
    rows = audit(model, build_plan(model, "lite_residual", {"bias": True}), 1.0, 0.1)
    decay = {row["tensor"]: row["weight_decay"] for row in rows}
    assert decay["features.0.1.bias"] == 0.0
    assert decay["features.1.conv.lite.conv.weight"] == decay["classifier.1.weight"] == 0.1


@pytest.mark.parametrize("bias", [False, True])
def test_what_is_frozen_stays_to_the_bit_and_modules_move(bias: bool) -> None:
    options = {"bias": bias}
    model = adapted(**options)
    plan = build_plan(model, "lite_residual", options)
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, plan.phases[0], TrainingParams(lr=0.1, device="cpu"))
    set_modes(model, plan.phases[0])
    optimizer.param_groups[0]["lr"] = 0.1
    for _ in range(2):  # the first step moves no convolution
        cross_entropy(model(images(32)), torch.tensor([0, 1])).backward()
        optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    rows = audit(model, plan, 1.0, 0.0)
    assert moved == {row["tensor"] for row in rows if not row["frozen"]}


@pytest.mark.parametrize(
    ("option", "value"), [("kernel", 4), ("kernel", 0), ("kernel", -1), ("groups", 3), ("groups", 0), ("groups", 16)]
)
def test_modules_that_cannot_be_are_refused_naming_the_option(option: str, value: int) -> None:
    with pytest.raises(InputError, match=f"lite_residual: {option}: found {value}, expected"):
        adapted(**{option: value})


# Where it goes


def test_the_backbone_goes_beneath_the_modules(toy_inputs: Path) -> None:
    model, plain = adapted(), build(3, 0)
    before = copy.deepcopy(model.state_dict())
    load_backbone(model, toy_inputs / "models" / "backbone.safetensors")
    load_backbone(plain, toy_inputs / "models" / "backbone.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if ".lite." in name else plain.state_dict()[name]), name


def test_the_same_seed_gives_the_same_modules() -> None:
    name = "features.3.conv.lite.conv.weight"
    first, again, other = (build_model(3, seed, "lite_residual", {}).state_dict()[name] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_weights_are_written_and_loaded_again_with_the_same_answers(tmp_path: Path) -> None:
    model = awake(adapted(bias=True)).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = build_model(3, 5, "lite_residual", {"bias": True}).eval()
    load_weights(other, tmp_path / "model.safetensors")
    assert torch.equal(other(images(48)), model(images(48)))


def test_weights_of_a_plain_network_are_no_whole_weights(tmp_path: Path) -> None:
    save_file(build(3, 0).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="lite"):
        load_weights(adapted(), tmp_path / "model.safetensors")


def test_a_copy_has_modules_of_its_own() -> None:
    model = adapted().eval()
    other = awake(copy.deepcopy(model))
    assert torch.equal(model(images(32)), build(3, 0).eval()(images(32)))
    assert not torch.equal(other(images(32)), model(images(32)))


def test_blocks_with_modules_are_computed_again_whole() -> None:
    torch.set_num_threads(1)
    kept, again = awake(adapted()).eval(), awake(adapted()).eval()
    checkpoint_blocks(again)
    bytes_of, gradients = [], []
    for model in (kept, again):
        cross_entropy(model(images(32)), torch.tensor([0, 1])).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        bytes_of.append(kept_for_backward(lambda model=model: model(images(32)), model.state_dict().values()))  # type: ignore[misc]
    assert [name for name in gradients[0] if not torch.equal(gradients[0][name], gradients[1][name])] == []
    assert bytes_of[1] < 0.5 * bytes_of[0]


def test_the_plan_is_the_same_without_values() -> None:
    with torch.device("meta"):
        shapes = adapted()
    assert build_plan(shapes, "lite_residual", {}).phases == build_plan(adapted(), "lite_residual", {}).phases
    assert shapes(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 3)
    assert set(BLOCKS) == {block_of(name) for name in shapes.state_dict()}
