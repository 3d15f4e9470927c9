"""What a packet says → rows of the decoder's width, past the features.

    q [n, M] ─ × step ─ synthesis [M, D] ─ projector [D, H] ─→ rows [n, H]
                        └────── one product, [M, H] ──────┘

Promises what decoding and then projecting gives, up to rounding, in a hundredth of the multiplications at the released
shapes (M = 64, D = 6144, H = 4096). Leaves positions to whoever assembles prompts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.codec.codec import Codec, Parsed


class PacketProjection:
    """A codec's synthesis and a projector's ``weight`` [H, D] and ``bias`` [H], both linear, as one."""

    def __init__(self, codec: Codec, weight: NDArray[np.float32], bias: NDArray[np.float32] | None = None) -> None:
        self._step = codec.weights.step  # [Q, M]
        self._through = codec.weights.synthesis.T @ weight.T  # [M, H]
        self._mean = codec.weights.mean @ weight.T  # [H]
        if bias is not None:
            self._mean = self._mean + bias

    def rows(self, parsed: Parsed) -> NDArray[np.float32]:
        """[n, H]"""
        found: NDArray[np.float32] = (parsed.q.astype(np.float32) * self._step[parsed.quality]) @ self._through
        found += self._mean
        return found
