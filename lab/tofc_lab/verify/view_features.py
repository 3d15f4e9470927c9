"""Pixels and features of each view of a picture, written to one file to compare with other implementations.

    picture ─ views ─ view0_pixels ─ tower ─ view0_features ─ projector ─ view0_projected, view1_pixels, …
                      [3, S, S]              [N, D]                       [N, H]

Promises the values that device and server compute before merging and coding, in prompt order, and the same bytes for
the same input on the same machine. Leaves checking them to `tofc-lab verify`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tofc.model.checkpoint import Checkpoint
from tofc.model.open_image import open_image
from tofc.model.projector import Projector
from tofc.model.tower import Tower
from tofc.model.views import views


def write(
    model: Path,
    picture: Path,
    out: Path,
    *,
    dtype: torch.dtype = torch.float32,
    compute: str = "cpu",
    log: Callable[[str], None],
) -> None:
    """Write `out`, an .npz; `model` is a whole checkpoint, a device half, or the folder of both halves.

    The tower computes on the device `compute`. Beside the arrays of each view the file has `kind`, `row` and `column`
    [V]. A device half alone has no projected features.
    Raises `CheckpointError`, `ImageError`.
    """
    device = Checkpoint.open(model, "device")
    prepared = views(open_image(picture), device.config.rule)
    projector = _projector(model, device)
    tower = Tower(device, dtype, compute)
    found: dict[str, Any] = {
        "kind": np.array([view.kind for view in prepared]),
        "row": np.array([view.row for view in prepared]),
        "column": np.array([view.column for view in prepared]),
    }
    for index, view in enumerate(prepared):
        features = tower.encode(view.pixels[None])[0]  # [N, D]
        arrays = {"pixels": view.pixels, "features": features}
        if projector is not None:
            arrays["projected"] = projector.project(features)
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        place = f"crop, row {view.row}, column {view.column}" if view.kind == "crop" else "global"
        log(f"view{index} ({place}): {shapes}")
        found |= {f"view{index}_{name}": array for name, array in arrays.items()}
    with out.open("wb") as file:  # given a name, `savez` would append .npz
        np.savez(file, **found)


def _projector(model: Path, device: Checkpoint) -> Projector | None:
    if device.side is None:
        return Projector(device)
    halves = device.path.parent
    together = model == halves and (halves / "server" / "config.json").exists()
    return Projector(Checkpoint.open(halves, "server")) if together else None
