"""What is said of this machine's CPU."""

import pytest
import torch

from finetune import processor


@pytest.mark.parametrize(
    ("kernels", "avx512", "avx512_bf16", "amx", "has"),
    [
        (False, False, False, False, False),  # AVX2
        (True, True, False, False, False),  # AVX-512 alone, as Skylake, Cascade Lake and Ice Lake have it
        (True, True, True, False, True),  # Cooper Lake, Zen 4
        (True, True, True, True, True),  # Sapphire Rapids
        (True, False, False, False, True),  # ARM, for which PyTorch asks for the instructions themselves
    ],
)
def test_a_cpu_has_bf16_where_its_kernels_have_instructions_for_it(
    kernels: bool, avx512: bool, avx512_bf16: bool, amx: bool, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: kernels)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert processor.cpu_has_bf16() is has


def test_without_onednn_there_is_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not processor.cpu_has_bf16()
