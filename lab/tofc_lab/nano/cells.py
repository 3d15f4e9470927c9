"""Labels for every output cell of the tower, and the heads that predict them while it is trained.

A cell is the area of one feature: 56 × 56 px of the picture. With a label for each cell a tower learns in minutes what
it would learn from answers in days. Not used after training.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tofc_lab.world import easy_vqa
from tofc_lab.world.objects import NAMES
from tofc_lab.world.scene import Scene, Sign, Thing

CELL = 56  # px: patches of 14, halved twice
SIGN = len(NAMES)  # class of a sign
CLASSES = SIGN + 1

#: labels of all cells of a picture, by the names that `label` returns
Labels = dict[str, NDArray[np.int64] | NDArray[np.float32]]


def label(scene: Scene) -> Labels:
    """Return the labels of a scene's G cells, in raster order.

    `cover` [G]: class + 1 of the object or sign that covers most of the cell, 0 if none covers a fifth. `centre`
    [G, CLASSES]: 1 for each class with its centre in the cell. `offset` [G, 2]: from the cell's centre to that one, in
    cells; NaN if there is none. `tens`, `ones` [G]: digits of a sign with its centre in the cell; −100, which the
    loss ignores, if there is none.
    """
    rows, columns = scene.height // CELL, scene.width // CELL
    cover = np.zeros((rows, columns), np.int64)
    most = np.full((rows, columns), 0.2)
    centre = np.zeros((rows, columns, CLASSES), np.float32)
    offset = np.full((rows, columns, 2), np.nan, np.float32)
    tens, ones = np.full((rows, columns), -100), np.full((rows, columns), -100)
    tops, lefts = np.arange(rows) * CELL, np.arange(columns) * CELL
    marked: list[tuple[int, Thing | Sign]] = [(NAMES.index(t.name), t) for t in scene.things]
    if scene.sign is not None:
        marked.append((SIGN, scene.sign))
    for kind, item in marked:
        left, top, right, bottom = item.box
        high = np.clip(np.minimum(tops + CELL, bottom) - np.maximum(tops, top), 0, None)
        wide = np.clip(np.minimum(lefts + CELL, right) - np.maximum(lefts, left), 0, None)
        share = np.outer(high, wide) / CELL**2
        hit = share >= most
        cover[hit], most[hit] = kind + 1, share[hit]
        row, column = int(item.y // CELL), int(item.x // CELL)
        if 0 <= row < rows and 0 <= column < columns:
            centre[row, column, kind] = 1
            offset[row, column] = item.x / CELL - column - 0.5, item.y / CELL - row - 0.5
            if kind == SIGN and scene.sign is not None:
                tens[row, column], ones[row, column] = divmod(scene.sign.number, 10)
    return {
        "cover": cover.reshape(-1),
        "centre": centre.reshape(-1, CLASSES),
        "offset": offset.reshape(-1, 2),
        "tens": tens.reshape(-1),
        "ones": ones.reshape(-1),
    }


class CellHead(nn.Module):
    """Linear heads on features [B, G, D], not kept after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [CLASSES + 1, CLASSES, 2, 10, 10]
        self.cells = nn.Linear(width, sum(self.sizes))
        self.easy = nn.Linear(width, len(easy_vqa.SHAPES) + len(easy_vqa.COLOURS))

    def loss(self, features: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted sum of all losses, and each of them for the log."""
        cover, centre, offset, tens, ones = self.cells(features).split(self.sizes, dim=-1)
        parts = {
            "cover": F.cross_entropy(cover.flatten(0, 1), labels["cover"].flatten()),
            "centre": F.binary_cross_entropy_with_logits(
                centre, labels["centre"], pos_weight=torch.full((CLASSES,), 4.0), reduction="none"
            )
            .sum(-1)
            .mean(),
        }
        centred = ~labels["offset"][..., 0].isnan()
        if centred.any():
            parts["offset"] = 2 * F.smooth_l1_loss(offset[centred], labels["offset"][centred])
        if (labels["tens"] >= 0).any():
            parts["tens"] = 0.6 * F.cross_entropy(tens.flatten(0, 1), labels["tens"].flatten())
            parts["ones"] = 0.6 * F.cross_entropy(ones.flatten(0, 1), labels["ones"].flatten())
        return torch.stack(list(parts.values())).sum(), {k: float(v.detach()) for k, v in parts.items()}

    def easy_loss(self, features: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of shape and colour of easy-VQA pictures, predicted from the mean feature."""
        # normalised, because this rarely trained head is sensitive to the scale of the features
        mean = F.layer_norm(features.mean(1), features.shape[-1:])
        shape, colour = self.easy(mean).split([len(easy_vqa.SHAPES), len(easy_vqa.COLOURS)], dim=-1)
        loss = F.cross_entropy(shape, labels["shape"]) + F.cross_entropy(colour, labels["colour"])
        return loss, {"easy": float(loss.detach())}

    @torch.no_grad()
    def scores(self, features: Tensor, labels: dict[str, Tensor]) -> dict[str, float]:
        """Return accuracies: covered cells named, centres found (recall and precision), numbers read."""
        cover, centre, offset, tens, ones = self.cells(features).split(self.sizes, dim=-1)
        covered = labels["cover"] > 0
        found, true = centre > 0.7, labels["centre"] > 0  # logits, not probabilities; positives are weighted by 4
        signed = labels["tens"] >= 0
        right = (tens.argmax(-1) == labels["tens"]) & (ones.argmax(-1) == labels["ones"])
        centred = ~labels["offset"][..., 0].isnan()
        return {
            "cover": float((cover.argmax(-1) == labels["cover"])[covered].float().mean()),
            "recall": float((found & true).sum() / true.sum().clamp(min=1)),
            "precision": float((found & true).sum() / found.sum().clamp(min=1)),
            "offset_px": float((offset - labels["offset"])[centred].abs().mean() * CELL),
            "read": float(right[signed].float().mean()),
        }
