"""How the vision tower computes: --backend, --device, --dtype and --threads.

Promises that whatever changes packets is part of a picture's identity, and that a device which does not exist is
reported before anything is loaded. Leaves loading to `tofc.model.vision_tower`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tofc.errors import EncoderError, UsageError
from tofc.install import install
from tofc.model.checkpoint import Checkpoint
from tofc.model.torch_threads import MAX_THREADS, use_passive_waiting
from tofc.model.vision_tower import BACKENDS, VisionTower, choose_backend, open_tower

DTYPES = ("float32", "bfloat16", "int8")


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how the vision tower computes.

    `dtype` None is the type that the checkpoint is stored in, `threads` None the number that the back end chooses.
    """

    backend: str = "auto"
    dtype: str | None = None
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UsageError(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype}")
        if self.backend not in BACKENDS:
            raise UsageError(f"--backend must be one of {', '.join(BACKENDS)}, got {self.backend}")
        if self.backend == "numpy" and (self.dtype or "float32") != "float32":
            raise UsageError(f"--backend numpy computes in float32; with --dtype {self.dtype} use --backend torch")
        if self.backend == "numpy" and self.device != "cpu":
            raise UsageError(f"--backend numpy computes on the CPU; with --device {self.device} use --backend torch")
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(f"--threads must be 1 to {MAX_THREADS}, got {self.threads}")
        if self.dtype == "int8" and self.device != "cpu":
            raise UsageError(f"--dtype int8 is for the CPU; with --device {self.device} use bfloat16")

    def check(self) -> None:
        """Check that the device exists; imports torch unless it is the CPU. Raises UsageError, EncoderError."""
        if self.device == "cpu":
            return
        use_passive_waiting()
        from tofc.model.torch_devices import check_device

        try:
            check_device(self.device)
        except ImportError as error:
            raise EncoderError(f"--device {self.device} needs torch: {install('torch')}") from error

    def dtype_of(self, checkpoint: Checkpoint) -> str:
        """Return the type that the tower computes in; a checkpoint not stored in bfloat16 computes in float32."""
        stored = checkpoint.stored["vision_model.conv1.weight"].dtype
        return self.dtype or ("bfloat16" if stored == "BF16" and self.backend != "numpy" else "float32")

    def open_tower(self, checkpoint: Checkpoint) -> VisionTower:
        """Load the tower. Raises EncoderError where torch is needed and missing, ResourceError for lack of memory."""
        dtype = self.dtype_of(checkpoint)
        backend = choose_backend(self.backend, checkpoint, dtype=dtype, device=self.device)
        try:
            return open_tower(checkpoint, backend, dtype=dtype, device=self.device, threads=self.threads)
        except ImportError as error:
            raise EncoderError(
                f"a vision tower in {dtype} needs {error.name}: {install('torch')}; without it --backend numpy "
                "computes in float32"
            ) from error

    def setting(self, checkpoint: Checkpoint) -> str:
        """Return what may change packets, "" for float32 on a CPU. Devices of one kind count as equal."""
        dtype, kind = self.dtype_of(checkpoint), self.device.partition(":")[0]
        return (f", {dtype}" if dtype != "float32" else "") + (f", {kind}" if kind != "cpu" else "")


AS_STORED = Compute()
