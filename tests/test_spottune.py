"""SpotTune: both ways are what they say, gradients reach the policy, and an image's way is its own."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import MobileNetV2

from finetune.accounting import activation_bytes, flops_per_image
from finetune.errors import InputError
from finetune.lean_backward import keep_less
from finetune.model import BLOCKS, block_of, build, load_weights
from finetune.params import TrainingParams
from finetune.recomputation import checkpoint_blocks
from finetune.step import set_modes
from finetune.strategies import build_model, build_plan
from finetune.strategies.plan import audit
from finetune.strategies.spottune import begin, sampled

ROUTED = [f"features.{i}" for i in range(1, 18)]
LABELS = torch.tensor([0, 1, 2, 0])


def adapted(**options: Any) -> MobileNetV2:
    """The network with the weights of `plain`, as a run starts."""
    model = build_model(3, 0, "spottune", options)
    model.load_state_dict(plain().state_dict(), strict=False)
    begin(model)
    return model


def plain() -> MobileNetV2:
    """A network with statistics and norms unlike a new one's, and no dropout."""
    model = build(3, 9)
    model.classifier[0].p = 0.0
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def spoilt(model: MobileNetV2, frozen: bool) -> MobileNetV2:
    """One copy of every block, the frozen or the tuned, holds other weights."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if block_of(name) in ROUTED and (".conv.frozen." in name) == frozen:
            nn.init.uniform_(parameter, 0.1, 0.2)
    return model


def towards(model: MobileNetV2, tuned: bool) -> MobileNetV2:
    """The policy sends every image one way through every block, whatever the noise."""
    last = model.policy[-1]
    nn.init.zeros_(last.weight)
    pair = torch.tensor([-1000.0, 1000.0] if tuned else [1000.0, -1000.0])
    last.bias.data.copy_(pair.repeat(17))
    model.classifier[0].p = 0.0
    return model


def images(number: int = 4) -> Tensor:
    return torch.rand(number, 3, 32, 32, generator=torch.Generator().manual_seed(4))


# Both ways


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_frozen_it_is_the_network_as_it_was_pretrained(precision: str) -> None:
    model, expected = towards(spoilt(adapted(), frozen=False), tuned=False).eval(), plain().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        assert torch.equal(model(images()), expected(images()))


def test_all_tuned_it_trains_as_the_plain_network() -> None:
    torch.set_num_threads(1)
    model, other = towards(spoilt(adapted(), frozen=True), tuned=True), plain().train()
    set_modes(model, build_plan(model, "spottune", {}).phases[0])
    for network in (model, other):
        cross_entropy(network(images()), LABELS).backward()
    own = dict(model.named_parameters())
    assert [n for n, p in other.named_parameters() if not torch.equal(own[n].grad, p.grad)] == []  # type: ignore[arg-type]
    after = model.state_dict()
    assert [n for n, tensor in other.state_dict().items() if not torch.equal(after[n], tensor)] == []


def test_each_image_takes_its_own_way() -> None:
    model, expected = spoilt(adapted(), frozen=False).eval(), plain().eval()
    block, x = model.features[3], torch.rand(2, 24, 8, 8)
    model.features.routes.tuned = torch.tensor([[0.0] * 17, [1.0] * 17])
    out = block(x)
    assert torch.equal(out[0], expected.features[3](x)[0])
    assert not torch.allclose(out[1], expected.features[3](x)[1])


# The policy


def test_what_is_drawn_is_0_or_1() -> None:
    torch.manual_seed(0)
    drawn = sampled(torch.randn(50, 17, 2, requires_grad=True), 0.7)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("tau", [0.1, 5.0])
def test_ways_are_drawn_by_the_logits_at_any_temperature(tau: float) -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 3.0]).log1p().expand(20_000, 1, 2)  # 1 : 4
    assert sampled(logits, tau).mean() == pytest.approx(0.8, abs=4 * (0.8 * 0.2 / 20_000) ** 0.5)


def test_backward_a_way_is_the_softmax_it_rounds() -> None:
    model = spoilt(adapted(), frozen=False).eval()
    block, x = model.features[3], torch.rand(2, 24, 8, 8)
    logits, other = (torch.tensor([[[0.3, -0.2]], [[-0.4, 0.9]]]).requires_grad_() for _ in range(2))
    tau, weights = 2.0, torch.randn(2, 24, 8, 8)

    torch.manual_seed(7)
    model.features.routes.tuned = sampled(logits, tau).expand(2, 17)
    (weights * block(x)).sum().backward()

    torch.manual_seed(7)
    noisy = other - torch.empty(2, 1, 2).exponential_().log()
    soft = torch.sigmoid((noisy[..., 1] - noisy[..., 0]) / tau)[..., None, None]
    *layers, frozen = block.conv
    tuned = x
    for layer in layers:
        tuned = layer(tuned)
    (weights * (x + soft * tuned + (1 - soft) * frozen(x))).sum().backward()

    assert logits.grad is not None
    assert other.grad is not None
    assert logits.grad.abs().min() > 0
    torch.testing.assert_close(logits.grad, other.grad)


def test_every_weight_of_the_policy_gets_a_gradient_and_no_frozen_one() -> None:
    model = spoilt(adapted(), frozen=False)
    set_modes(model, build_plan(model, "spottune", {}).phases[0])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".frozen." not in name)
    cross_entropy(model(images()), LABELS).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("policy."):
            assert parameter.grad is not None and parameter.grad.any(), name
        assert (parameter.grad is None) == (".frozen." in name), name


def test_training_draws_ways_anew_and_evaluation_does_not() -> None:
    model = spoilt(adapted(), frozen=False)
    trained, evaluated = [], []
    for _ in range(2):
        for mode, found in ((True, trained), (False, evaluated)):
            model.train(mode)(images())
            found.append(model.features.routes.tuned)
    assert not torch.equal(trained[0], trained[1])
    assert torch.equal(evaluated[0], evaluated[1])
    assert set(evaluated[0].unique().tolist()) <= {0.0, 1.0}


def test_the_same_random_numbers_give_the_same_ways() -> None:
    model, routes = adapted().train(), []
    for _ in range(2):
        torch.manual_seed(3)
        model(images())
        routes.append(model.features.routes.tuned)
    assert torch.equal(routes[0], routes[1])


def test_in_evaluation_an_images_way_does_not_depend_on_its_batch() -> None:
    model = spoilt(adapted(), frozen=False).eval()
    nn.init.normal_(model.policy[-1].weight, std=10)
    seen = (
        torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        * torch.linspace(0.1, 3, 6)[:, None, None, None]
    )
    with torch.no_grad():
        together, routes = model(seen), model.features.routes.tuned
        assert len(routes.unique(dim=0)) > 1  # some images take other ways than others
        for i in range(6):
            alone = model(seen[i : i + 1])
            assert torch.equal(model.features.routes.tuned[0], routes[i])
            torch.testing.assert_close(alone[0], together[i])


# What is trained, and what it costs


def test_the_networks_own_tensors_are_tuned_and_the_copies_frozen() -> None:
    model = adapted()
    rows = audit(model, build_plan(model, "spottune", {"policy_scale": 0.2}), 1.0, 0.1)
    own = {name for name, _ in build(3, 0).named_parameters()}
    for row in rows:
        copied, policy = ".conv.frozen." in row["tensor"], row["block"] == "policy"
        assert row["frozen"] == copied, row["tensor"]
        assert row["batchnorm"] == ("eval" if copied else "train")
        if row["kind"] == "parameter":
            assert row["lr"] == (0.0 if copied else 0.2 if policy else 1.0)
            assert copied or policy or row["tensor"] in own


def test_every_inverted_residual_is_there_twice() -> None:
    model, own = adapted(), build(3, 0)
    blocks = sum(parameter.numel() for block in own.features[1:18] for parameter in block.parameters())
    policy = 3 * 16 * 9 + 16 * 32 * 9 + 32 * 64 * 9 + 2 * (16 + 32 + 64) + 64 * 34 + 34
    assert policy == 25_906
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in own.parameters()) + blocks + policy


def test_operations_nearly_double() -> None:
    once, both = (
        flops_per_image(lambda: build(3, 0), 96),
        flops_per_image(lambda: build_model(3, 0, "spottune", {}), 96),
    )
    assert 1.8 < both / once < 2.1


def test_frozen_copies_add_little_to_what_is_kept_where_frozen_layers_keep_less() -> None:
    recipe = TrainingParams(image_size=32, batch_size=4, device="cpu")

    def lean() -> MobileNetV2:
        model = build_model(3, 0, "spottune", {})
        keep_less(model)
        return model

    def without() -> MobileNetV2:
        model = build(3, 0)
        keep_less(model)
        return model

    state = torch.get_rng_state()
    both = activation_bytes(lean, build_plan(lean(), "spottune", {}).phases, recipe, 4)
    assert both < 1.25 * activation_bytes(without, build_plan(without(), "same_lr", {}).phases, recipe, 4)
    assert torch.equal(torch.get_rng_state(), state)  # no noise is drawn where there are no values


@pytest.mark.parametrize(("option", "value"), [("tau", 0.0), ("tau", -1.0), ("policy_scale", 0.0)])
def test_what_cannot_be_is_refused_naming_the_option(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"spottune: {option}: found {value}, expected a number above 0"):
        build_model(3, 0, "spottune", {option: value})


# Where it goes


def test_the_names_of_tensors_stay_and_the_policy_is_a_block() -> None:
    names = list(build_model(3, 0, "spottune", {}).state_dict())
    assert set(build(3, 0).state_dict()) < set(names)
    assert {block_of(name) for name in names} == {*BLOCKS, "policy"}


def test_at_the_beginning_both_copies_are_the_same() -> None:
    state = adapted().state_dict()
    copies = {name: tensor for name, tensor in state.items() if ".frozen." in name}
    assert len(copies) == sum(block_of(name) in ROUTED for name in build(3, 0).state_dict())
    for name, tensor in copies.items():
        assert torch.equal(tensor, plain().state_dict()[name.replace(".frozen.", ".")]), name


def test_a_copy_of_the_network_follows_its_own_policy() -> None:
    model = towards(spoilt(adapted(), frozen=False), tuned=False).eval()
    other = towards(copy.deepcopy(model), tuned=True)
    expected = model(images())
    assert not torch.allclose(other(images()), expected)
    assert torch.equal(model(images()), expected)
    copy.deepcopy(model.train()), model(images()), copy.deepcopy(model)  # also with a way of the last batch in it


def test_features_by_themselves_take_the_ways_of_their_images() -> None:
    model = towards(spoilt(adapted(), frozen=False), tuned=False).eval()
    assert torch.equal(model.features(images()), plain().eval().features(images()))


def test_blocks_that_are_computed_again_take_the_same_ways() -> None:
    torch.set_num_threads(1)
    gradients = []
    for change in (lambda model: None, checkpoint_blocks):
        model = spoilt(adapted(), frozen=False)
        model.classifier[0].p = 0.0
        set_modes(model, build_plan(model, "spottune", {}).phases[0])
        change(model)
        torch.manual_seed(5)
        cross_entropy(model(images()), LABELS).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert [name for name in gradients[0] if not torch.equal(gradients[0][name], gradients[1][name])] == []


def test_weights_are_written_and_loaded_again_with_the_same_answers(tmp_path: Path) -> None:
    model = spoilt(adapted(), frozen=False).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = build_model(3, 5, "spottune", {}).eval()
    load_weights(other, tmp_path / "model.safetensors")
    assert torch.equal(other(images()), model(images()))


def test_the_plan_is_the_same_without_values() -> None:
    with torch.device("meta"):
        shapes = build_model(3, 0, "spottune", {})
    here = build_plan(build_model(3, 0, "spottune", {}), "spottune", {})
    assert build_plan(shapes, "spottune", {}).phases == here.phases


@pytest.mark.parametrize("training", [False, True])
def test_routes_are_the_same_under_bf16_and_without(training: bool) -> None:
    model, images = adapted(), torch.rand(64, 3, 32, 32)
    routes, ways = model.features.routes, []
    with torch.no_grad():
        biases = routes.policy[-1].bias.view(-1, 2)
        logits = routes.policy(images).view(64, -1, 2)
        biases[:, 1] -= (logits[..., 1] - logits[..., 0]).median(0).values  # half of the images take each way, narrowly
        for low in (False, True):
            torch.manual_seed(3)
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                routes.decide(images, training)
            assert routes.tuned is not None
            assert routes.tuned.dtype == torch.float32
            ways.append(routes.tuned)
    assert torch.equal(*ways)
    assert 0 < ways[0].mean() < 1
