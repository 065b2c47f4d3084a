"""bfloat16 only where the device has instructions for it."""

import pytest
import torch

from pipeline.training.precision import computes_bfloat16


@pytest.fixture(autouse=True)
def _ask_anew():
    computes_bfloat16.cache_clear()
    yield
    computes_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": False, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({}, False),
    ],
)
def test_cpu_computes_bfloat16_only_with_instructions_for_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert computes_bfloat16(torch.device("cpu")) is expected


@pytest.mark.parametrize("expected", [True, False])
def test_imitated_bfloat16_of_an_old_gpu_does_not_count(monkeypatch, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or expected)
    assert computes_bfloat16(torch.device("cuda", 0)) is expected


def test_nothing_is_known_of_other_devices():
    assert computes_bfloat16(torch.device("mps")) is False


def test_torch_names_the_instructions_as_we_do():
    capabilities = torch.cpu.get_capabilities()
    name = {"x86_64": "avx512_bf16", "aarch64": "bf16", "arm64": "bf16"}.get(capabilities["architecture"])
    if name is None:
        pytest.skip(f"nothing is known of {capabilities['architecture']}")
    assert name in capabilities
