"""Several processes that train one codec, a share of each batch in every one; mostly there is only one.

Promises that all members hold the same weights after every step, because they begin alike and take the same mean
gradient. Leaves starting processes and talking between them to accelerate
(``accelerate launch -m lab.cli train-codec …``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PATIENCE = timedelta(days=1)  # with a member that does something alone; torch's own ends after minutes


class Team:
    """``rank`` of ``size`` processes; the one of rank 0 writes files and speaks."""

    def __init__(self) -> None:
        self._accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator, InitProcessGroupKwargs

            self._accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
        self.rank: int = self._accelerator.process_index if self._accelerator else 0
        self.size: int = self._accelerator.num_processes if self._accelerator else 1

    def device(self, wanted: str) -> torch.device:
        """This member's: its own GPU where each has one."""
        if self._accelerator and wanted == "cuda":
            return torch.device(self._accelerator.device)
        return torch.device(wanted)

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """All take those of rank 0, in place: what each computed for itself may differ in the last bit."""
        if self._accelerator:
            for one in tensors:
                torch.distributed.broadcast(one.data, 0)

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Gradients become their mean over all members."""
        if self._accelerator:
            for one in parameters:
                if one.grad is not None:
                    one.grad.copy_(self._accelerator.reduce(one.grad, reduction="mean"))

    def mean(self, values: Tensor) -> Tensor:
        """The mean of all members' ``values``."""
        return self._accelerator.reduce(values, reduction="mean") if self._accelerator else values

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of all members' ``values``."""
        if not self._accelerator:
            return values
        summed = self._accelerator.reduce(torch.from_numpy(values).to(self._accelerator.device), reduction="sum")
        found: NDArray[np.float64] = summed.cpu().numpy()
        return found

    def wait(self) -> None:
        """Until every member is here."""
        if self._accelerator:
            self._accelerator.wait_for_everyone()
