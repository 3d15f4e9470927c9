"""What the experiments with experts share: symbols of pictures, training steps, and results that are kept.

Promises that a file of results with the same basis is resumed. Leaves the variants to `experts` and `index_experts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tofc import json_text
from tofc.codec.codec import Codec
from tofc_lab.codec.places import Pool
from tofc_lab.nano.features import CachedPicture
from tofc_lab.nano.source import pool
from tofc_lab.progress import Log

Variant = TypeVar("Variant")


def symbols(codec: Codec, pictures: list[CachedPicture], quality: int, seed: int, share_merged: float) -> Pool:
    """Return the integers that the codec chooses for pictures, as float32; a share of the pictures is merged."""
    whole = pool(pictures, codec.components, seed, share_merged)
    parts = np.split(whole.features.float().numpy(), np.cumsum([len(cells) for _, cells in whole.views])[:-1])
    q = [
        codec.symbols(codec.components(part), grid, cells, quality).q
        for part, (grid, cells) in zip(parts, whole.views, strict=True)
    ]
    return whole.mapped(torch.from_numpy(np.concatenate(q).astype(np.float32)))


def descend(
    parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor], *, steps: int, rate: float, clip: float
) -> None:
    """Minimise `loss()`, which draws a batch at each call, with Adam at a falling rate."""
    parameters = list(parameters)
    optimiser = torch.optim.Adam(parameters)
    for done in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - done / steps)
        value = loss()
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()


def trials(
    variants: Sequence[Variant],
    out: Path,
    basis: dict[str, Any],
    measure: Callable[[Variant], dict[str, Any]],
    log: Log,
) -> list[dict[str, Any]]:
    """Return the results of all variants; write `out` (JSON) after each. One of another basis is replaced."""
    kept = json_text.read(out) if out.exists() else {}
    found: list[dict[str, Any]] = kept["bits"] if kept.get("basis") == basis else []
    for variant in variants[len(found) :]:
        found.append(measure(variant))
        log(str(found[-1]))
        out.parent.mkdir(parents=True, exist_ok=True)
        json_text.write(out, {"basis": basis, "bits": found})
    return found
