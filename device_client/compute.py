"""Where the tower computes, how exactly and with how many threads: ``--device``, ``--dtype`` and ``--threads``.

Promises that whatever changes features is part of a picture's identity, and that a device which is not there is
said before anything is loaded. Leaves loading to `shared.model.tower`.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_client.errors import EncoderError, UseError
from shared.install import install
from shared.model.checkpoint import Checkpoint
from shared.model.threads import MOST_THREADS, wait_asleep

DTYPES = ("float32", "bfloat16", "int8")


@dataclass(frozen=True, kw_only=True)
class Compute:
    """``dtype`` None: as the checkpoint is stored, for least memory; ``threads`` None: as many as torch takes."""

    dtype: str | None = None
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UseError(f"--dtype {self.dtype} is not known; choose one of {', '.join(DTYPES)}")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise UseError(f"--threads must be 1 to {MOST_THREADS}, got {self.threads}")
        if self.dtype == "int8" and self.device != "cpu":
            raise UseError(f"--dtype int8 is for the CPU; with --device {self.device} take bfloat16")

    def check(self) -> None:
        """Look for the device; imports torch unless it is the CPU. Raises UseError, EncoderError."""
        if self.device == "cpu":
            return
        wait_asleep()
        from shared.model.device import devices

        try:
            found = devices()
        except ImportError as error:
            raise EncoderError(f"--device {self.device} needs torch: {install('device')}") from error
        if self.device not in found:
            raise UseError(f"--device {self.device} is not there; torch finds on this machine: {', '.join(found)}")

    def dtype_of(self, checkpoint: Checkpoint) -> str:
        """The type of the tower's numbers. Stored in others than bfloat16, it computes in float32."""
        stored = checkpoint.stored["vision_model.conv1.weight"].dtype
        return self.dtype or ("bfloat16" if stored == "BF16" else "float32")

    def setting(self, checkpoint: Checkpoint) -> str:
        """What it does to features; "" for float32 on a CPU. Two devices of a kind count as equal."""
        dtype, kind = self.dtype_of(checkpoint), self.device.partition(":")[0]
        return (f", {dtype}" if dtype != "float32" else "") + (f", {kind}" if kind != "cpu" else "")


AS_STORED = Compute()
