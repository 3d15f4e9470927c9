"""The devices of torch: why one is missing, which number type suits each, and whether weights fit into its memory."""

from __future__ import annotations

import pytest
import torch

from tofc.errors import ResourceError, UsageError
from tofc.model.resources import require_memory
from tofc.model.torch_devices import check_device, default_dtype, free_device_memory_bytes

BUILDS = {
    (None, None): "this torch is a CPU build .*--index-url https",
    ("13.0", None): "this torch is for CUDA 13.0, but it finds no GPU; see whether `nvidia-smi`",
    (None, "7.1"): "this torch is for ROCm 7.1, but it finds no GPU",
}


@pytest.mark.parametrize("build", BUILDS)
def test_a_missing_gpu_has_its_reason(monkeypatch: pytest.MonkeyPatch, build: tuple[str | None, str | None]) -> None:
    monkeypatch.setattr(torch.version, "cuda", build[0])
    monkeypatch.setattr(torch.version, "hip", build[1])
    with pytest.raises(UsageError, match=rf"^--device must be one that torch finds here \(cpu\), .*{BUILDS[build]}"):
        check_device("cuda:1")
    with pytest.raises(UsageError, match=r"got 'toaster'$"):
        check_device("toaster")
    check_device("cpu")


def test_accelerators_compute_as_stored_and_cpus_in_float32() -> None:
    stored = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    assert {one: default_dtype("cuda:0", one) for one in stored} == stored
    assert {default_dtype("cpu", one) for one in stored} == {"float32"}


def test_free_memory_is_unknown_without_a_device() -> None:
    assert free_device_memory_bytes("cuda:0") is None
    require_memory(1 << 60, "much", "cuda:0")  # tried, because nobody knows


def test_what_exceeds_a_device_s_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tofc.model.resources.free_device_memory_bytes", lambda device: 10**9)
    require_memory(10**9, "a decoder", "cuda:0")
    with pytest.raises(
        ResourceError, match=r"a decoder needs 2.0 GB of memory on cuda:0 and 1.0 GB are free; end other"
    ):
        require_memory(2 * 10**9, "a decoder", "cuda:0")
