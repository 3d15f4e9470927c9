"""Which device each of several processes computes on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tofc.errors import UsageError
from tofc_lab.codec.distributed import ProcessGroup


def second_of_two(device: str) -> ProcessGroup:
    return ProcessGroup(SimpleNamespace(process_index=1, num_processes=2, device=torch.device(device)))


def test_each_process_has_its_own_gpu() -> None:
    assert second_of_two("cuda:1").device("cuda") == torch.device("cuda:1")
    assert second_of_two("xpu:1").device("xpu") == torch.device("xpu:1")
    assert second_of_two("cuda:1").device("cpu") == second_of_two("cpu:0").device("cpu") == torch.device("cpu")


def test_one_gpu_by_number_is_for_one_process() -> None:
    with pytest.raises(UsageError, match="--device cuda:0 would put all 2 processes on one device; use --device cuda,"):
        second_of_two("cuda:1").device("cuda:0")
    assert ProcessGroup().device("cuda:0") == torch.device("cuda:0")
