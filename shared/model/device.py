"""What torch can compute on here. Promises the names that torch itself takes; imports torch when it is asked."""

from __future__ import annotations


def devices() -> list[str]:
    """``cpu``, and the accelerator's kind and numbers where torch finds one: cpu, cuda, cuda:0, …"""
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return ["cpu"]
    return ["cpu", kind.type, *(f"{kind.type}:{number}" for number in range(torch.accelerator.device_count()))]
