"""The devices that torch can compute on here. Promises names that torch accepts; imports torch only when called."""

from __future__ import annotations


def torch_devices() -> list[str]:
    """Return `cpu` and, if torch finds an accelerator, its kind and each device's name: `cuda`, `cuda:0`, …."""
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return ["cpu"]
    return ["cpu", kind.type, *(f"{kind.type}:{number}" for number in range(torch.accelerator.device_count()))]
