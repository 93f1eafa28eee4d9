"""How a run computes: device, process-wide settings, precision, compilation, and where pixels lie."""

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune import depthwise, device, gpu_convolutions
from finetune.batches import Batches, DeviceBatches
from finetune.errors import InputError
from finetune.evaluation import predict
from finetune.model import build
from finetune.optimizers import make_optimizer
from finetune.params import TrainingParams
from finetune.step import Step
from finetune.store import Split, open_store
from finetune.strategies import build_plan
from finetune.study import Layout
from finetune.training import train_epoch
from small_splits import noise, split_of

CPU = torch.device("cpu")


@pytest.fixture
def _settings_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    inductor = import_module("torch._inductor.config")
    chosen = inductor.deterministic
    filled = torch.utils.deterministic.fill_uninitialized_memory
    matmul, cudnn, threads = torch.backends.cuda.matmul, torch.backends.cudnn, torch.get_num_threads()
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before[:3]
    torch.use_deterministic_algorithms(before[3])
    torch.utils.deterministic.fill_uninitialized_memory = filled
    inductor.deterministic = chosen
    torch.set_num_threads(threads)


def recipe(**changes: Any) -> TrainingParams:
    return TrainingParams.model_validate({"image_size": 32, "batch_size": 5, "device": "cpu"} | changes)


# Devices


@pytest.mark.parametrize(("there_is_one", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_where_there_is_one(there_is_one: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_one)
    assert device.resolve_device("auto") == expected
    assert device.resolve_device("cpu") == "cpu"


def test_cuda_is_cuda_where_there_is_one_and_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.resolve_device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"device cuda: PyTorch sees no CUDA device.*use device auto or cpu"):
        device.resolve_device("cuda")


# What is set for the process


@pytest.mark.usefixtures("_settings_put_back")
@pytest.mark.parametrize("threads", [1, 2])
def test_the_recipes_threads_are_the_processs(threads: int) -> None:
    device.configure(recipe(threads=threads))
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("_settings_put_back")
def test_a_training_keeps_what_it_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[None] = []
    monkeypatch.setattr(device, "keep_freed_memory", lambda: kept.append(None))
    device.configure(TrainingParams(device="cpu", threads=torch.get_num_threads()))
    assert kept


@pytest.mark.parametrize(("precision", "rounded"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_on_a_gpu_the_operands_of_fp32_are_not_rounded_to_tf32(precision: str, rounded: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not rounded
    device.configure(recipe(device="cuda", precision=precision))
    assert torch.backends.cuda.matmul.allow_tf32 == rounded
    assert torch.backends.cudnn.allow_tf32 == rounded


@pytest.mark.usefixtures("_settings_put_back")
@pytest.mark.parametrize("deterministic", [True, False])
def test_on_a_gpu_a_deterministic_recipe_has_deterministic_kernels_that_are_not_chosen_by_time(
    deterministic: bool,
) -> None:
    torch.backends.cudnn.benchmark = deterministic
    device.configure(recipe(device="cuda", deterministic=deterministic))
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.backends.cudnn.benchmark != deterministic
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic


@pytest.mark.usefixtures("_settings_put_back")
@pytest.mark.parametrize("deterministic", [True, False])
def test_what_is_compiled_for_a_deterministic_recipe_is_not_chosen_by_time(deterministic: bool) -> None:
    inductor = import_module("torch._inductor.config")
    device.configure(recipe(device="cuda", deterministic=not deterministic, compile="default"))
    device.configure(recipe(device="cuda", deterministic=deterministic, compile="default"))
    assert inductor.deterministic == deterministic


@pytest.mark.usefixtures("_settings_put_back")
def test_another_setting_of_cublas_is_refused_where_bits_shall_be_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    device.configure(recipe(device="cuda"))
    with pytest.raises(InputError, match=r"CUBLAS_WORKSPACE_CONFIG: found ':0:0' .*expected :4096:8 or :16:8 .*unset"):
        device.configure(recipe(device="cuda", deterministic=True))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_a_forward_pass_is_rounded_to_bf16_where_that_is_asked_for(precision: str, dtype: torch.dtype) -> None:
    with device.autocast(CPU, precision):
        assert nn.Linear(4, 4)(torch.ones(1, 4)).dtype == dtype


# Moving a network to its device


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What networks were told to be compiled with; nothing is."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: calls.append(options))
    return calls


class OnAnyDevice(nn.Module):
    """Stands for a network on a GPU."""

    features = nn.Sequential()

    def to(self, *place: Any, **options: Any) -> "OnAnyDevice":
        return self


@pytest.mark.parametrize(
    ("name", "layout"), [("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)]
)
def test_a_network_is_moved_to_the_recipes_memory_format(name: str, layout: torch.memory_format) -> None:
    model = build(3, seed=0)
    device.move_to_device(model, recipe(memory_format=name))
    assert device.memory_format(recipe(memory_format=name)) == layout
    assert model.features[0][0].weight.is_contiguous(memory_format=layout)


def test_a_network_is_not_compiled_unless_told(compiled: list[dict[str, Any]]) -> None:
    device.move_to_device(build(3, seed=0), recipe())
    assert compiled == []


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("default", {}),
        ("reduce-overhead", {"triton.cudagraphs": True}),
        ("max-autotune", {"triton.cudagraphs": True, "max_autotune": True, "coordinate_descent_tuning": True}),
    ],
)
def test_for_a_gpu_a_network_is_compiled_in_the_mode_told_and_writes_fewer_elementwise_results(
    mode: str, options: dict[str, Any], compiled: list[dict[str, Any]]
) -> None:
    model, relu = OnAnyDevice(), nn.ReLU6(inplace=True)
    model.features = nn.Sequential(relu)
    device.move_to_device(model, recipe(compile=mode, device="cuda"))
    fewer = {"realize_reads_threshold": 12, "realize_opcount_threshold": 100}
    assert compiled == [{"options": options | fewer, "dynamic": False}]
    assert not relu.inplace


def test_for_a_cpu_a_network_is_compiled_as_it_is(compiled: list[dict[str, Any]]) -> None:
    model = build(3, seed=0)
    device.move_to_device(model, recipe(compile="default"))
    assert compiled == [{"mode": "default", "dynamic": False}]
    assert model.features[0][2].inplace


def test_torch_compile_takes_the_options() -> None:
    inductor = import_module("torch._inductor.config")
    assert all(hasattr(inductor, name) for name in device._FEWER_WRITTEN)


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ({"device": "cuda"}, [True]),
        ({"device": "cuda", "memory_format": "contiguous"}, [False]),
        ({"device": "cpu"}, []),
    ],
)
def test_convolutions_take_the_forms_for_a_gpu_on_one(
    changes: dict[str, str], calls: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(gpu_convolutions, "use_fast_forms", lambda model, channels_last: seen.append(channels_last))
    device.move_to_device(OnAnyDevice(), recipe(**changes))
    assert seen == calls


@pytest.mark.parametrize(
    ("changes", "replaced"),
    [({"device": "cuda", "depthwise": "triton"}, 1), ({"device": "cuda"}, 0), ({"depthwise": "triton"}, 0)],
)
def test_depthwise_layers_are_replaced_on_a_gpu_where_that_is_asked_for(
    changes: dict[str, str], replaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[nn.Module] = []
    monkeypatch.setattr(depthwise, "obstacle", lambda: "")
    monkeypatch.setattr(depthwise, "use_triton_depthwise", models.append)
    model = OnAnyDevice()
    device.move_to_device(model, recipe(**changes))
    assert models == [model] * replaced


def test_triton_is_refused_where_its_kernels_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*shape: int, device: str) -> Tensor:
        raise RuntimeError("Failed to find C compiler\nor so")

    def said() -> str:
        depthwise.obstacle.cache_clear()
        with pytest.raises(InputError) as error:
            device.move_to_device(OnAnyDevice(), recipe(device="cuda", depthwise="triton"))
        depthwise.obstacle.cache_clear()
        return str(error.value)

    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(depthwise, "INSTALLED", True)
    failed = "Triton's kernels do not run on this GPU (Failed to find C compiler)"
    assert said() == f"training.depthwise: triton: {failed}; mend that, or use torch"
    monkeypatch.setattr(depthwise, "INSTALLED", False)
    assert said() == "training.depthwise: triton: Triton is not installed; mend that, or use torch"


def test_whole_batches_of_training_go_through_what_is_compiled_and_no_others() -> None:
    model, seen, through_call = build(3, seed=0), [], []

    def forward(images: Tensor, forward: Callable[[Tensor], Tensor] = model.forward) -> Tensor:
        seen.append(len(images))
        return forward(images)

    model.forward = forward
    model.register_forward_pre_hook(lambda module, inputs: through_call.append(len(inputs[0])))  # forward has no hooks
    split = split_of(noise(12, 32, 32))
    batches = Batches(Split(split.pixels, split.index, split.labels % 3), 32, 5, CPU, torch.channels_last, 1.0)
    phase = build_plan(model, "same_lr", {}).phases[0]
    train_epoch(Step(model, phase, make_optimizer(model, phase, recipe()), recipe()), batches, 0, 0, "toy")
    assert (seen, through_call) == ([5, 5, 2], [5, 5])
    predict(model, batches, "fp32")
    assert (seen, through_call) == ([5, 5, 2, 5, 5, 2], [5, 5])


# Where pixels lie


def test_on_the_cpu_batches_are_made_on_the_host() -> None:
    batches = device.Feed(recipe(memory_format="contiguous", crop_pct=0.9)).batches(split_of(noise(3)))
    assert type(batches) is Batches
    assert (batches.image_size, batches.batch_size, batches.device) == (32, 5, CPU)
    assert (batches.memory_format, batches.crop_pct) == (torch.contiguous_format, 0.9)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The pixel files that were sent to a GPU with 1 MB of free memory."""
    files: list[Path] = []

    def upload(split: Split, to: torch.device) -> Tensor:
        files.append(Path(str(split.pixels.filename)))
        return torch.from_numpy(np.array(split.pixels))

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda to: (1_000_000, 80_000_000_000))
    monkeypatch.setattr(device, "upload", upload)
    return files


def test_on_a_gpu_two_splits_of_one_pixel_file_share_its_pixels(toy_inputs: Path, uploads: list[Path]) -> None:
    store, feed = open_store(Layout(toy_inputs).store("toy")), device.Feed(recipe(device="cuda"))
    train, val, test = (feed.batches(store.split(name)) for name in ("train", "val", "test"))
    assert isinstance(train, DeviceBatches) and isinstance(val, DeviceBatches) and isinstance(test, DeviceBatches)
    assert train.device == torch.device("cuda")
    assert train.resident is val.resident is not None
    assert test.resident is not train.resident
    assert [file.name for file in uploads] == ["trainval.u8", "test.u8"]


@pytest.mark.parametrize(("free", "resident"), [(290_000, True), (270_000, False)])  # 0.4 of it for 36 x 3072 bytes
def test_on_a_gpu_pixels_that_would_take_too_much_of_its_memory_are_streamed(
    free: int, resident: bool, toy_inputs: Path, uploads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda to: (free, 80_000_000_000))
    split = open_store(Layout(toy_inputs).store("toy")).split("train")
    batches = device.Feed(recipe(device="cuda")).batches(split)
    assert isinstance(batches, DeviceBatches)
    assert (batches.resident is not None) == resident
    assert len(uploads) == resident


@pytest.mark.usefixtures("uploads")
@pytest.mark.parametrize(("precision", "exact"), [("fp32", True), ("tf32", False), ("bf16", False)])
def test_on_a_gpu_views_are_exact_at_fp32(precision: str, exact: bool, toy_inputs: Path) -> None:
    split = open_store(Layout(toy_inputs).store("toy")).split("test")
    batches = device.Feed(recipe(device="cuda", precision=precision)).batches(split)
    assert isinstance(batches, DeviceBatches)
    assert batches.exact == exact


def test_uploaded_pixels_are_those_of_the_file_from_its_first_byte_to_its_last(toy_inputs: Path) -> None:
    for name in ("train", "test"):
        split = open_store(Layout(toy_inputs).store("toy")).split(name)
        assert np.array_equal(device.upload(split, CPU).numpy(), split.pixels)


def test_a_file_that_is_uploaded_in_two_goes_is_whole() -> None:
    pixels = np.resize(np.arange(251, dtype=np.uint8), 64 * 2**20 + 1000)  # a period that no chunk is a multiple of
    split = Split(pixels, np.zeros((0, 3), np.int64), np.zeros(0, np.int64))
    assert np.array_equal(device.upload(split, CPU).numpy(), pixels)
