"""Several processes that train one codec, each on its share of every batch; usually there is only one.

Promises that all processes hold the same weights after every step, because they start with the same weights and
apply the same mean gradient. Leaves starting the processes and their communication to accelerate
(`accelerate launch -m tofc_lab.cli train-codec …`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tofc.errors import UsageError

TIMEOUT = timedelta(days=1)  # rank 0 does some work alone; torch's default ends the others after minutes


class ProcessGroup:
    """`rank` of `size` processes; rank 0 writes files and logs. Without an accelerator there is one process."""

    def __init__(self, accelerator: Any = None) -> None:
        self._accelerator = accelerator
        self.rank: int = accelerator.process_index if accelerator else 0
        self.size: int = accelerator.num_processes if accelerator else 1

    @classmethod
    def join(cls) -> Self:
        """Join the processes that accelerate or torchrun started with this one, if they did."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import Accelerator, InitProcessGroupKwargs

        return cls(Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)]))

    def device(self, wanted: str) -> torch.device:
        """Return this process's device: its own GPU where each has one. Raises `UsageError` for one GPU by number."""
        if self._accelerator is None:
            return torch.device(wanted)
        if ":" in wanted:
            raise UsageError(
                f"--device {wanted} would put all {self.size} processes on one device; use --device "
                f"{wanted.partition(':')[0]}, which gives each its own"
            )
        own = torch.device(self._accelerator.device)
        return own if own.type == wanted != "cpu" else torch.device(wanted)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace the tensors by those of rank 0, in place: computed separately, they may differ in the last bit."""
        if self._accelerator:
            for one in tensors:
                torch.distributed.broadcast(one.data, 0)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over all processes."""
        if self._accelerator:
            for one in parameters:
                if one.grad is not None:
                    one.grad.copy_(self._accelerator.reduce(one.grad, reduction="mean"))

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over all processes."""
        return self._accelerator.reduce(values, reduction="mean") if self._accelerator else values

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of `values` over all processes."""
        if not self._accelerator:
            return values
        summed = self._accelerator.reduce(torch.from_numpy(values).to(self._accelerator.device), reduction="sum")
        found: NDArray[np.float64] = summed.cpu().numpy()
        return found

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self._accelerator:
            self._accelerator.wait_for_everyone()
