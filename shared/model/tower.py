"""The vision tower: pixels [B, 3, H, W] → features [B, N, 4 × width].

Promises the published Perception Encoder computation for any square view whose side is a multiple of the
patch (STEP3-VL-10B, arXiv 2601.09668; Perception Encoder, arXiv 2504.13181), as transformers implements
it, its renaming of the released tensors included. Leaves normalising pixels to ``views``.

    pixels ─ patches ─ + positions ─ LN ─ L × (attention with 2-D RoPE, MLP) ─ conv ½ ─ conv ½ ─ features
             14 px     interpolated                                            [B, 13·13, 6144] of 728 px
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Step3p7VisionConfig, Step3p7VisionModel
from transformers.utils import logging as transformers_logging

from shared.model.checkpoint import Checkpoint
from shared.model.config import CheckpointError
from shared.model.released_names import VISION


class Tower:
    """A loaded tower on ``device``. Safe to use from one thread at a time.

    >>> tower = Tower(Checkpoint.open(path, side="device"))                # doctest: +SKIP
    >>> features = tower.encode(np.zeros((1, 3, 336, 336), np.float32))    # doctest: +SKIP
    >>> features.shape                                                     # doctest: +SKIP
    (1, 36, 768)
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        """Read the tower's tensors into ``dtype``. Raises ``CheckpointError`` if they do not fit."""
        self.config = checkpoint.config
        self.dtype, self.device = dtype, torch.device(device)
        self.model = _load(checkpoint, dtype).to(self.device)

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised pixels [B, 3, S, S] → features [B, N, D], row by row, N = ``config.grid(S)`` squared.

        Raises ``ValueError`` for another shape or a side that is no multiple of the patch.
        """
        patch = self.config.patch
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3] or pixels.shape[2] % patch:
            raise ValueError(
                f"pixels are {pixels.shape}; the tower takes [B, 3, S, S] with S a multiple of {patch}: use views()"
            )
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)).to(self.device, self.dtype)
            features = self.model(x).last_hidden_state  # [B, N, D]
            found: NDArray[np.float32] = features.float().cpu().contiguous().numpy()
        return found


#: transformers replaces methods of its base class while it loads: two loads at once leave them replaced for ever
_LOADING = threading.Lock()


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> torch.nn.Module:
    state = {name.removeprefix(VISION): tensor for name, tensor in checkpoint.vision_tensors().items()}
    logging: Any = transformers_logging  # untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    load: Any = Step3p7VisionModel.from_pretrained  # its return type depends on output_loading_info
    try:
        with _LOADING:
            model, report = load(
                None,
                config=Step3p7VisionConfig(**checkpoint.config.vision),
                state_dict=state,
                dtype=dtype,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
    finally:
        if shown:
            logging.enable_progress_bar()
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise CheckpointError(
                f"{checkpoint.path}: transformers reports {problem} {sorted(report[problem])[:3]} for the tower; "
                "the checkpoint is of another model or this version of transformers is not supported"
            )
    loaded: torch.nn.Module = model.eval().requires_grad_(False)
    return loaded
