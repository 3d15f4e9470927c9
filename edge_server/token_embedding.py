"""The token embedding of a checkpoint: token ids → rows of a prompt, for every engine.

Promises to read the rows that are asked for only, from the memory-mapped file, so that a server whose decoder runs
elsewhere needs neither torch nor memory for the table. Leaves the decoder's number format to the engine, which rounds
the rows as it rounds its own table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tofc.model.checkpoint import Checkpoint

TABLE = "model.embed_tokens.weight"  # [V, H]


class TokenEmbedding:
    """Maps token ids [T] to rows [T, H], float32; the caller may write into them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Map the table of a whole checkpoint, or of its server half."""
        self._rows = checkpoint.stored[TABLE].rows()

    def __call__(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the rows of token ids. Raises IndexError for an id that the model does not have."""
        return self._rows(np.asarray(ids, np.int64))
