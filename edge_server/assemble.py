"""Packets and turns → the embeddings a decoder reads.

    packet ─ codec ─ q [n, M] ─ synthesis and projector in one ─ [n, H] ─ + grid embedding [n, H] ─ view [n, H]
    turns ─ chat template ─ token ids [T] ─ token embedding ─ [T, H], views on the <im_patch> rows

Promises that the grid of a view and the length of a prompt are checked before memory of their size is allocated. Leaves
the tokens around views to `tofc.model.prompt` and memory to `picture_cache`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_server.engine.base import Prompt
from tofc.codec.codec import Codec, Parsed
from tofc.errors import CheckpointError, CorruptPacketError, InvalidRequestError, PacketError
from tofc.model.config import SplitConfig
from tofc.model.projector import Projector
from tofc.model.prompt import PictureLayout, Turn, build

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class PictureRows:
    """A picture as a prompt needs it: its crop grid, and each view's rows, the global view last."""

    rows: int
    columns: int
    views: Sequence[NDArray[np.float32]]  # each [n, H]


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A prompt, its token ids and its share of pictures."""

    prompt: Prompt
    ids: Sequence[int]  # [T], including those that pictures replace
    visual_tokens: int


class Assembler(Protocol):
    """Makes prompts. Its methods run in several worker threads at the same time."""

    def views(self, packet: bytes, *, codec_id: str, count: int, last: bool) -> Sequence[NDArray[np.float32]]:
        """Turn a packet of `count` views of a codec into the rows [n, H] of each; `last`: the last is the global view.

        Raises CorruptPacketError, InvalidRequestError.
        """

    def prompt(self, turns: Sequence[Turn], pictures: Sequence[PictureRows], max_rows: int) -> Assembled:
        """Make a prompt of at most `max_rows` rows. Raises InvalidRequestError (PROMPT_TOO_LONG)."""

    def continued(self, prompt: Prompt, ids: Sequence[int]) -> Prompt:
        """Return the prompt followed by token ids, as if the model had generated them."""

    def beginning(self, turns: Sequence[Turn], pictures: Sequence[PictureRows], max_rows: int) -> Prompt | None:
        """Return the prompt up to the first view that is missing: pictures may have their first views only.

        None if it is longer than `max_rows`, or if no view is missing.
        """


def too_long(length: int, max_rows: int) -> InvalidRequestError:
    """Return the error for a prompt that leaves no room for an answer."""
    return InvalidRequestError(
        f"the question and its pictures are {length} tokens, at most {max_rows} leave room for an answer; ask about "
        "fewer pictures, keep fewer features of each, or shorten the conversation",
        reason="PROMPT_TOO_LONG",
    )


Embed = Callable[[Sequence[int]], NDArray[np.float32]]  # token ids [T] → [T, H]


class SplitAssembler:
    """Makes prompts with the codecs, the projector and the token embedding of one checkpoint."""

    def __init__(
        self,
        *,
        config: SplitConfig,
        codecs: Mapping[str, Codec],
        projector: Projector,
        tokenizer: PreTrainedTokenizerFast,
        embed: Embed,
    ) -> None:
        """Take codecs by their ids. Raises CheckpointError for one that has other shapes than the model."""
        wanted = (config.feature_dim, config.hidden)
        for codec_id, codec in codecs.items():
            if (codec.config.feature_dim, codec.config.hidden) != wanted:
                raise CheckpointError(
                    f"the codec {codec_id} takes features of {codec.config.feature_dim} and embeds "
                    f"{codec.config.hidden}, the model has {wanted[0]} and {wanted[1]}; put the codec that was trained "
                    "for this model beside it"
                )
        self._config = config
        self._codecs = codecs
        self._projector = projector
        self._tokenizer = tokenizer
        self._embed = embed
        # Maps symbols to rows directly, without computing the features in between.
        self._rows = {
            codec_id: codec.dequantise.fused_with(projector.weight, projector.bias)
            for codec_id, codec in codecs.items()
        }

    def views(self, packet: bytes, *, codec_id: str, count: int, last: bool) -> Sequence[NDArray[np.float32]]:
        """See `Assembler`."""
        try:
            parsed = self._codecs[codec_id].parse_views(packet, most=count)
        except PacketError as error:
            raise CorruptPacketError(str(error), reason=error.reason) from error
        if len(parsed) != count:
            raise InvalidRequestError(
                f"the packet has {len(parsed)} views, the request says {count}; say how many it has",
                reason="VIEW_COUNT_INVALID",
            )
        return [
            self._view(view, codec_id=codec_id, last=last and number == count) for number, view in enumerate(parsed, 1)
        ]

    def _view(self, parsed: Parsed, *, codec_id: str, last: bool) -> NDArray[np.float32]:
        codec = self._codecs[codec_id]
        kind, size = ("global view", self._config.global_size) if last else ("crop", self._config.crop_size)
        if parsed.grid != self._config.grid(size):
            raise InvalidRequestError(
                f"a {kind} of {size} px has a grid of {self._config.grid(size)} x {self._config.grid(size)} features, "
                f"the packet has {parsed.grid} x {parsed.grid}; send each view under its own index",
                reason="GRID_MISMATCH",
            )
        rows = self._rows[codec_id](parsed.q, parsed.quality)
        rows += codec.grid_embedding(parsed.grid, parsed.positions)
        return rows

    def add_grid(self, rows: NDArray[np.float32], grid: int, cells: NDArray[np.integer]) -> NDArray[np.float32]:
        """Add the grid embedding of the first codec to rows [n, H] of cells [n] of a grid, in place."""
        rows += next(iter(self._codecs.values())).grid_embedding(grid, cells)
        return rows

    def prompt(self, turns: Sequence[Turn], pictures: Sequence[PictureRows], max_rows: int) -> Assembled:
        """See `Assembler`."""
        layouts = [
            PictureLayout(
                rows=one.rows,
                columns=one.columns,
                crops=tuple(len(view) for view in one.views[:-1]),
                whole=len(one.views[-1]),
            )
            for one in pictures
        ]
        visual = sum(layout.features for layout in layouts)
        if visual > max_rows:
            raise too_long(visual, max_rows)
        tokens = build(self._tokenizer, turns, layouts)
        if len(tokens.ids) > max_rows:
            raise too_long(len(tokens.ids), max_rows)
        embeds = self._embed(tokens.ids)  # [T, H]
        if visual:
            embeds[tokens.feature_positions] = np.concatenate([view for one in pictures for view in one.views])
        return Assembled(prompt=Prompt(embeds=embeds), ids=tokens.ids, visual_tokens=visual)

    def continued(self, prompt: Prompt, ids: Sequence[int]) -> Prompt:
        """See `Assembler`."""
        return replace(prompt, embeds=np.concatenate([prompt.embeds, self._embed(ids)]))

    def beginning(self, turns: Sequence[Turn], pictures: Sequence[PictureRows], max_rows: int) -> Prompt | None:
        """See `Assembler`. A view that is missing is laid out with one feature: the tokens before it stay the same."""
        layouts = []
        for one in pictures:
            counts = [len(view) for view in one.views] + [1] * (one.rows * one.columns + 1 - len(one.views))
            layouts.append(
                PictureLayout(rows=one.rows, columns=one.columns, crops=tuple(counts[:-1]), whole=counts[-1])
            )
        views = [view for one in pictures for view in one.views]
        ready = sum(map(len, views))
        tokens = build(self._tokenizer, turns, layouts)
        if not ready < len(tokens.feature_positions):
            return None
        end = int(tokens.feature_positions[ready])
        if not 0 < end <= max_rows:
            return None
        embeds = self._embed(tokens.ids[:end])  # [end, H]
        if views:
            embeds[tokens.feature_positions[:ready]] = np.concatenate(views)
        return Prompt(embeds=embeds)
