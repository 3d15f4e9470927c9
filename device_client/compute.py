"""How the vision tower computes: --backend, --dtype, --device, --execution-provider and --threads.

Promises that whatever changes packets is part of a picture's identity, and that what this machine or the tower does not
have is reported before anything is loaded. Leaves loading to `tofc.model.vision_tower`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tofc.errors import EncoderError, UsageError
from tofc.install import install
from tofc.model.checkpoint import Checkpoint
from tofc.model.torch_threads import MAX_THREADS, use_passive_waiting
from tofc.model.vision_tower import BACKENDS, DTYPES, MODULES, VisionTower, choose_backend, open_tower


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how the vision tower computes.

    `dtype` None is the type that the checkpoint is stored in, `threads` None the number that the back end chooses,
    `provider` None the CPU.
    """

    backend: str = "auto"
    dtype: str | None = None
    device: str = "cpu"
    provider: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES["torch"]:
            raise UsageError(f"--dtype must be one of {', '.join(DTYPES['torch'])}, got {self.dtype}")
        if self.backend not in BACKENDS:
            raise UsageError(f"--backend must be one of {', '.join(BACKENDS)}, got {self.backend}")
        if self.provider and (self.backend not in ("auto", "onnx") or self.device != "cpu"):
            raise UsageError(
                f"--execution-provider {self.provider} belongs to --backend onnx; leave out --backend and --device"
            )
        backend = "onnx" if self.provider else self.backend
        if backend in DTYPES and self.dtype and self.dtype not in DTYPES[backend]:
            raise UsageError(
                f"--backend {backend} computes in {' or '.join(DTYPES[backend])}; with --dtype {self.dtype} use "
                "--backend torch"
            )
        if backend in ("numpy", "onnx") and self.device != "cpu":
            raise UsageError(
                f"--backend {backend} computes on the CPU; with --device {self.device} use --backend torch"
            )
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(f"--threads must be 1 to {MAX_THREADS}, got {self.threads}")
        if self.dtype == "int8" and self.device != "cpu":
            raise UsageError(f"--dtype int8 is for the CPU; with --device {self.device} use bfloat16")

    def check(self, checkpoint: Checkpoint) -> None:
        """Check what the tower can do, and that the device or execution provider exists; imports torch for a device.

        Raises UsageError, EncoderError.
        """
        tower = checkpoint.config.tower
        if self.dtype == "int8" and not tower.INT8:
            raise UsageError(
                f"--dtype int8 would change the answers of {tower.MODEL_TYPE}, the vision tower of {checkpoint.path}; "
                "leave --dtype out"
            )
        self._backend(checkpoint)
        if self.provider:
            from tofc.model.onnx_tower import provider_name

            try:
                provider_name(self.provider)
            except ImportError as error:
                raise EncoderError(f"--execution-provider needs onnxruntime: {install('onnx')}") from error
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
        half = checkpoint.vision_dtype == "BF16" and checkpoint.config.tower.HALF
        by_torch = self.backend in ("auto", "torch") and not self.provider
        return self.dtype or ("bfloat16" if half and by_torch else "float32")

    def _backend(self, checkpoint: Checkpoint) -> str:
        return choose_backend(
            self.backend, checkpoint, dtype=self.dtype_of(checkpoint), device=self.device, provider=self.provider
        )

    def open_tower(self, checkpoint: Checkpoint) -> VisionTower:
        """Load the tower. Raises EncoderError where a package is missing, ResourceError for lack of memory."""
        dtype, backend = self.dtype_of(checkpoint), self._backend(checkpoint)
        try:
            return open_tower(
                checkpoint, backend, dtype=dtype, device=self.device, threads=self.threads, provider=self.provider
            )
        except ImportError as error:
            if error.name != MODULES.get(backend):
                raise
            other = [name for name in checkpoint.config.tower.BACKENDS if name not in ("torch", backend)]
            without = f"; without it --backend {other[0]} computes in float32" if other else ""
            raise EncoderError(f"a vision tower in {dtype} needs {error.name}: {install(backend)}{without}") from error

    def setting(self, checkpoint: Checkpoint) -> str:
        """Return what may change packets, "" for float32 on a CPU. Devices of one kind count as equal."""
        dtype, kind = self.dtype_of(checkpoint), self.device.partition(":")[0]
        found = [dtype] if dtype != "float32" else []
        if dtype == "int8" and self._backend(checkpoint) == "onnx":  # it rounds otherwise than torch
            found.append("onnx")
        if kind != "cpu":
            found.append(kind)
        if self.provider and self.provider.lower() != "cpu":
            found.append(self.provider.lower())
        return "".join(f", {one}" for one in found)


AS_STORED = Compute()
