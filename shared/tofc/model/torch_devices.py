"""The devices that torch can compute on here: their names, free memory, and the number type that suits each.

Promises names that torch accepts, and errors that say why a device is missing; imports torch only when called. Leaves
comparing sizes with free memory to `resources`.
"""

from __future__ import annotations

from tofc.errors import UsageError

GPU_BUILD = "https://download.pytorch.org/whl/cu130"
AUTO = "auto"
_STORED = {"BF16": "bfloat16", "F16": "float16"}


def torch_devices() -> list[str]:
    """Return `cpu` and, if torch finds an accelerator, its kind and each device's name: `cuda`, `cuda:0`, …."""
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return ["cpu"]
    return ["cpu", kind.type, *(f"{kind.type}:{number}" for number in range(torch.accelerator.device_count()))]


def check_device(device: str) -> None:
    """Check that torch finds a device, and say why if it does not. Raises UsageError."""
    if device == "cpu":
        return
    if device not in (found := torch_devices()):
        raise UsageError(
            f"--device must be one that torch finds here ({', '.join(found)}), got {device!r}{_why(device)}"
        )


def _why(device: str) -> str:
    import torch

    if device.partition(":")[0] != "cuda" or torch.accelerator.current_accelerator(check_available=True) is not None:
        return ""
    runtime = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    if not torch.version.cuda and not torch.version.hip:
        return (
            f": this torch is a CPU build ({torch.__version__}); install one for your GPU, such as `pip install torch "
            f"--index-url {GPU_BUILD}`, in a checkout `make clean demo TORCH_INDEX={GPU_BUILD}`"
        )
    return f": this torch is for {runtime}, but it finds no GPU; see whether `nvidia-smi` (ROCm: `rocminfo`) lists it"


def default_dtype(device: str, stored: str) -> str:
    """Return the number type for weights stored as `stored` (F32, BF16, F16): on accelerators as stored.

    On a CPU it is float32: many CPUs compute slowly in half precision.

    >>> default_dtype("cuda:1", "BF16"), default_dtype("cpu", "BF16")
    ('bfloat16', 'float32')
    """
    return "float32" if device == "cpu" else _STORED.get(stored, "float32")


def free_device_memory_bytes(device: str) -> int | None:
    """Return an accelerator's free memory, for all programs together; None if torch cannot tell."""
    import torch

    try:
        torch.accelerator.empty_cache()  # blocks that torch keeps for this program are free too
        free, _ = torch.accelerator.get_memory_info(torch.device(device))
    except (AttributeError, NotImplementedError, RuntimeError):  # not on every kind of device
        return None
    return int(free)
