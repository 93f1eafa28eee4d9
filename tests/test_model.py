"""The network's blocks and names, and every way in which weights can be wrong."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from finetune import model as models
from finetune.errors import InputError
from finetune.model import BLOCKS, block_of, build, check_backbone, load_backbone, load_weights, prepare_backbone

State = dict[str, Tensor]
STEM = "features.0.0.weight"


@pytest.fixture(scope="module")
def whole() -> State:
    """Torchvision's state dict with 5 classes."""
    return build(5, seed=1).state_dict()


@pytest.fixture
def state(whole: State) -> State:
    """The same, to be spoiled."""
    return dict(whole)


# Blocks


def test_the_blocks_are_19_features_and_the_classifier() -> None:
    assert (
        *("features.0", "features.1", "features.2", "features.3", "features.4", "features.5", "features.6"),
        *("features.7", "features.8", "features.9", "features.10", "features.11", "features.12", "features.13"),
        *("features.14", "features.15", "features.16", "features.17", "features.18", "classifier"),
    ) == BLOCKS


@pytest.mark.parametrize(
    ("tensor", "block"),
    [
        ("features.0.0.weight", "features.0"),
        ("features.1.conv.0.1.running_mean", "features.1"),
        ("features.17.conv.0.0.weight", "features.17"),
        ("features.18.1.num_batches_tracked", "features.18"),
        ("classifier.1.bias", "classifier"),
    ],
)
def test_a_tensors_block(tensor: str, block: str) -> None:
    assert block_of(tensor) == block


def test_every_tensor_has_a_block_and_every_block_a_tensor(whole: State) -> None:
    assert tuple(dict.fromkeys(block_of(name) for name in whole)) == BLOCKS


def test_batchnorm_is_found_by_type() -> None:
    found = [name for name, module in build(2, 0).named_modules() if models.is_batchnorm(module)]
    assert len(found) == 52  # 1 stem, 2 in the first block, 3 in each of 16, 1 last
    assert found[0] == "features.0.1"


# Building


def test_names_and_shapes_are_torchvisions(whole: State) -> None:
    theirs = mobilenet_v2(weights=None, num_classes=5).state_dict()
    assert {k: v.shape for k, v in whole.items()} == {k: v.shape for k, v in theirs.items()}
    assert list(whole) == list(theirs)


def test_the_head_has_as_many_outputs_as_classes(whole: State) -> None:
    assert whole["classifier.1.weight"].shape == (5, 1280)


def test_the_same_seed_builds_the_same_weights(whole: State) -> None:
    again = build(5, seed=1).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_another_seed_builds_other_weights(whole: State) -> None:
    other = build(5, seed=2).state_dict()
    assert not torch.equal(whole[STEM], other[STEM])
    assert not torch.equal(whole["classifier.1.weight"], other["classifier.1.weight"])


def test_building_leaves_the_random_generator_where_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(2, seed=1)
    assert torch.equal(torch.rand(3), expected)


# Backbones


def test_the_head_is_dropped_and_the_rest_kept(state: State) -> None:
    found = check_backbone(state, "here")
    assert set(found) == {name for name in state if not name.startswith("classifier.")}
    assert torch.equal(found[STEM], state[STEM])


def test_a_backbone_without_a_head_is_taken(state: State) -> None:
    del state["classifier.1.weight"], state["classifier.1.bias"]
    assert STEM in check_backbone(state, "here")


def test_counters_of_batches_may_be_absent(state: State) -> None:
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert check_backbone(state, "here")["features.0.1.num_batches_tracked"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_fp32(state: State, dtype: torch.dtype) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    found = check_backbone(state, "here")
    assert found[STEM].dtype == torch.float32
    assert torch.equal(found[STEM], state[STEM].float())
    assert found["features.0.1.num_batches_tracked"].dtype == torch.int64


def spoil_missing(state: State) -> None:
    del state["features.7.conv.1.1.running_var"]


def spoil_surplus(state: State) -> None:
    state["features.19.0.weight"] = torch.zeros(1)


def spoil_shape(state: State) -> None:
    state["features.7.conv.2.weight"] = torch.zeros(32, 192, 1, 1)


def spoil_nan(state: State) -> None:
    state["features.7.conv.2.weight"] = torch.full_like(state["features.7.conv.2.weight"], torch.nan)


def spoil_infinite(state: State) -> None:
    weight = state["features.7.conv.2.weight"].clone()
    weight[3, 5] = torch.inf
    state["features.7.conv.2.weight"] = weight


SPOILT = [
    (spoil_missing, "tensor features.7.conv.1.1.running_var is missing"),
    (spoil_surplus, "tensor features.19.0.weight is not one of the network's"),
    (spoil_shape, r"tensor features.7.conv.2.weight has shape \[32, 192, 1, 1\], expected \[64, 192, 1, 1\]"),
    (spoil_nan, "tensor features.7.conv.2.weight holds values that are not finite"),
    (spoil_infinite, "tensor features.7.conv.2.weight holds values that are not finite"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_a_backbone_with_a_wrong_tensor_is_refused_naming_it(
    state: State, spoil: Callable[[State], None], message: str
) -> None:
    spoil(state)
    with pytest.raises(InputError, match=f"weights.pth: {message}"):
        check_backbone(state, "weights.pth")


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_a_run_with_a_wrong_tensor_is_refused_naming_it(
    tmp_path: Path, state: State, spoil: Callable[[State], None], message: str
) -> None:
    spoil(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"model\.safetensors: {message}"):
        load_weights(build(5, seed=0), tmp_path / "model.safetensors")


def test_a_nearly_right_name_is_set_right(state: State) -> None:
    state["features.0.0.wieght"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"did you mean 'features\.0\.0\.weight'\?"):
        check_backbone(state, "here")


def test_an_old_head_under_another_name_is_surplus(state: State) -> None:
    state["fc.weight"] = torch.zeros(5, 1280)
    with pytest.raises(InputError, match=r"tensor fc\.weight is not one"):
        check_backbone(state, "here")


def test_a_backbone_goes_under_the_models_own_fresh_head(tmp_path: Path, whole: State) -> None:
    save_file(check_backbone(whole, "here"), tmp_path / "backbone.safetensors")
    model = build(3, seed=8)
    load_backbone(model, tmp_path / "backbone.safetensors")
    found = model.state_dict()
    assert all(torch.equal(found[k], whole[k]) for k in whole if not k.startswith("classifier."))
    assert torch.equal(found["classifier.1.weight"], build(3, seed=8).state_dict()["classifier.1.weight"])


def test_a_damaged_backbone_file_is_refused_naming_it(tmp_path: Path, whole: State) -> None:
    path = tmp_path / "backbone.safetensors"
    save_file(check_backbone(whole, "here"), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"backbone\.safetensors: cannot be read"):
        load_backbone(build(3, seed=8), path)


# A run's weights


def test_a_runs_weights_are_loaded_exactly(tmp_path: Path, whole: State) -> None:
    save_file(whole, tmp_path / "model.safetensors")
    model = build(5, seed=3)
    load_weights(model, tmp_path / "model.safetensors")
    found = model.state_dict()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_weights_for_other_classes_are_refused_naming_the_head(tmp_path: Path, whole: State) -> None:
    save_file(whole, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"tensor classifier\.1\.weight has shape \[5, 1280\], expected \[6, 1280\]"):
        load_weights(build(6, seed=3), tmp_path / "model.safetensors")


# Files


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_state_dict_is_read_from_any_of_its_files(tmp_path: Path, whole: State, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(whole, path) if suffix == ".safetensors" else torch.save(whole, path)
    found = models.read_state_dict(path)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


class Attack:
    """What a foreign pickle may hold: a call made on loading."""

    def __init__(self, victim: str) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.victim, "w")


@pytest.mark.parametrize("dump", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pickle_with_code_is_refused_and_the_code_not_run(
    tmp_path: Path, dump: Callable[[object, Path], None]
) -> None:
    dump({STEM: Attack(str(tmp_path / "owned"))}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights\.pth: refused by weights_only loading"):
        models.read_state_dict(tmp_path / "weights.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [{"state_dict": {STEM: torch.zeros(1)}, "epoch": 3}, [1, 2], torch.zeros(2)])
def test_a_checkpoint_around_the_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights\.pth: found \w+, expected a plain state dict"):
        models.read_state_dict(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 5000])
def test_a_truncated_file_is_refused_naming_it(tmp_path: Path, whole: State, name: str, kept: int) -> None:
    path = tmp_path / name
    save_file(whole, path) if path.suffix == ".safetensors" else torch.save(whole, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=name) as caught:
        models.read_state_dict(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_naming_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.pth: no such file"):
        models.read_state_dict(tmp_path / "absent.pth")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"hdf")
    with pytest.raises(InputError, match=r"found a \.h5 file, expected \.safetensors or \.pth"):
        models.read_state_dict(tmp_path / "weights.h5")


def test_a_files_digest_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert models.digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


# The stage


def test_the_backbone_is_brought_checked_as_safetensors(tmp_path: Path, whole: State) -> None:
    torch.save(whole, tmp_path / "own.pth")
    out = tmp_path / "models" / "backbone.safetensors"
    prepare_backbone(str(tmp_path / "own.pth"), "", tmp_path / "none", out)
    assert torch.equal(load_file(out)[STEM], whole[STEM])
    assert "classifier.1.weight" not in load_file(out)
    assert [file.name for file in out.parent.iterdir()] == [out.name]


def test_the_sample_backbone_is_read_from_where_it_lies(tmp_path: Path, whole: State) -> None:
    save_file(whole, tmp_path / "sample.safetensors")
    prepare_backbone("sample", "", tmp_path / "sample.safetensors", tmp_path / "out.safetensors")
    assert torch.equal(load_file(tmp_path / "out.safetensors")[STEM], whole[STEM])


def test_wrong_weights_leave_the_old_backbone(tmp_path: Path, state: State) -> None:
    out = tmp_path / "backbone.safetensors"
    out.write_bytes(b"old")
    spoil_missing(state)
    torch.save(state, tmp_path / "own.pth")
    with pytest.raises(InputError, match=r"backbone\.source .*own\.pth: tensor features\.7"):
        prepare_backbone(str(tmp_path / "own.pth"), "", tmp_path / "none", out)
    assert out.read_bytes() == b"old"


def test_a_full_disk_is_said_and_leaves_the_old_backbone(tmp_path: Path, whole: State) -> None:
    save_file(whole, tmp_path / "sample.safetensors")
    out = tmp_path / "models" / "backbone.safetensors"
    out.parent.mkdir()
    out.write_bytes(b"old")
    (out.parent / f".{out.name}.aside").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"backbone\.safetensors: cannot be written \(No space left on device\)"):
        prepare_backbone("sample", "", tmp_path / "sample.safetensors", out)
    assert out.read_bytes() == b"old"
    assert list(out.parent.iterdir()) == [out]


def test_an_unknown_enum_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"backbone\.weights: found 'IMAGENET1K_V1'.*MobileNet_V2_Weights\.IMAGENET1K_V2"
    ):
        prepare_backbone("torchvision", "IMAGENET1K_V1", tmp_path, tmp_path / "out")


def test_torchvisions_weights_go_through_their_checksum(
    tmp_path: Path, whole: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def fetched(self: MobileNet_V2_Weights, **options: object) -> State:
        asked.update(options, weights=self)
        return whole

    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", fetched)
    out = tmp_path / "out.safetensors"
    prepare_backbone("torchvision", "MobileNet_V2_Weights.IMAGENET1K_V2", tmp_path, out)
    assert asked["weights"] is MobileNet_V2_Weights.IMAGENET1K_V2
    assert asked["check_hash"] is True
    assert torch.equal(load_file(out)[STEM], whole[STEM])


def test_offline_the_message_says_which_file_to_bring_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.request
    from urllib.error import URLError

    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(InputError) as caught:
        prepare_backbone("torchvision", "MobileNet_V2_Weights.IMAGENET1K_V1", tmp_path, tmp_path / "out")
    message = str(caught.value)
    assert "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth: could not be fetched" in message
    assert f"bring the file to {tmp_path / 'hub' / 'checkpoints' / 'mobilenet_v2-b0353104.pth'}" in message
    assert "backbone.source" in message
    assert not (tmp_path / "out").exists()
