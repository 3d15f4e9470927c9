"""Packets and turns → the embeddings a decoder reads.

    packet ─ codec ─ q [n, M] ─ synthesis and projector in one ─ [n, H] ─ + grid embedding [n, H] ─ view [n, H]
    turns ─ chat template ─ token ids [T] ─ token embedding ─ [T, H], views on the <im_patch> rows

Promises that a view's rows and a prompt's length are checked before anything of their size is
allocated. Leaves the tokens around views to `shared.model.prompt` and memory to `pictures`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_server.engine.base import Prompt
from shared.codec.codec import Codec
from shared.codec.packet import PacketError
from shared.model.config import CheckpointError, SplitConfig
from shared.model.projector import Projector
from shared.model.prompt import Layout, Turn, build
from shared.rpc.errors import CorruptPacketError, InvalidRequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class PictureRows:
    """A complete picture as a prompt needs it: its crop grid, and each view's rows, the global view last."""

    rows: int
    columns: int
    views: Sequence[NDArray[np.float32]]  # each [n, H]


@dataclass(frozen=True, kw_only=True)
class Assembled:
    prompt: Prompt
    ids: Sequence[int]  # [T], those that pictures replace among them
    visual_tokens: int


class Assembler(Protocol):
    """Runs in worker threads; everything here may be called at the same time from several."""

    def view(self, packet: bytes, *, last: bool) -> NDArray[np.float32]:
        """One packet → rows [n, H]; `last` is the global view. Raises CorruptPacketError, InvalidRequestError."""

    def prompt(self, turns: Sequence[Turn], pictures: Sequence[PictureRows], most: int) -> Assembled:
        """Turns and pictures → a prompt of at most `most` rows. Raises InvalidRequestError (PROMPT_TOO_LONG)."""


def too_long(length: int, most: int) -> InvalidRequestError:
    """The error for a prompt that leaves the model no room to answer."""
    return InvalidRequestError(
        f"the question and its pictures are {length} tokens, at most {most} leave room for an answer; ask about fewer "
        "pictures, keep fewer features of each, or shorten the conversation",
        reason="PROMPT_TOO_LONG",
    )


Embed = Callable[[Sequence[int]], NDArray[np.float32]]  # token ids [T] → [T, H]


class SplitAssembler:
    """The real one: codec, projector and token embedding of one checkpoint."""

    def __init__(
        self,
        *,
        config: SplitConfig,
        codec: Codec,
        projector: Projector,
        tokenizer: "PreTrainedTokenizerFast",
        embed: Embed,
    ) -> None:
        """Raises CheckpointError when codec and model are of different shapes."""
        wanted = (config.feature_dim, config.hidden)
        if (codec.config.feature_dim, codec.config.hidden) != wanted:
            raise CheckpointError(
                f"the codec takes features of {codec.config.feature_dim} and embeds {codec.config.hidden}, the model "
                f"has {wanted[0]} and {wanted[1]}; put the codec that was trained for this model beside it"
            )
        self._config = config
        self._codec = codec
        self._projector = projector
        self._tokenizer = tokenizer
        self._embed = embed
        self._rows = codec.dequantise.before(projector.weight, projector.bias)  # past the features

    def view(self, packet: bytes, *, last: bool) -> NDArray[np.float32]:
        try:
            parsed = self._codec.parse(packet)
        except PacketError as error:
            raise CorruptPacketError(str(error), reason=error.reason) from error
        kind, size = ("global view", self._config.global_size) if last else ("crop", self._config.crop_size)
        if parsed.grid != self._config.grid(size):
            raise InvalidRequestError(
                f"the packet is of a grid of {parsed.grid} x {parsed.grid} features, a {kind} of {size} px has "
                f"{self._config.grid(size)} x {self._config.grid(size)}; send each view under its own index",
                reason="GRID_MISMATCH",
            )
        return self._placed(self._rows(parsed.q, parsed.quality), parsed.grid, parsed.positions)

    def place(self, features: NDArray[np.float32], grid: int, cells: NDArray[np.integer]) -> NDArray[np.float32]:
        """Features [n, D] of cells [n] of a grid → rows [n, H]."""
        return self._placed(self._projector.project(features), grid, cells)

    def _placed(self, rows: NDArray[np.float32], grid: int, cells: NDArray[np.integer]) -> NDArray[np.float32]:
        rows += self._codec.grid_embedding(grid, cells)
        return rows

    def prompt(self, turns: Sequence[Turn], pictures: Sequence[PictureRows], most: int) -> Assembled:
        layouts = [
            Layout(
                rows=one.rows,
                columns=one.columns,
                crops=tuple(len(view) for view in one.views[:-1]),
                whole=len(one.views[-1]),
            )
            for one in pictures
        ]
        visual = sum(layout.features for layout in layouts)
        if visual > most:
            raise too_long(visual, most)
        tokens = build(self._tokenizer, turns, layouts)
        if len(tokens.ids) > most:
            raise too_long(len(tokens.ids), most)
        embeds = self._embed(tokens.ids)  # [T, H]
        if visual:
            embeds[tokens.patches] = np.concatenate([view for one in pictures for view in one.views])
        return Assembled(prompt=Prompt(embeds=embeds), ids=tokens.ids, visual_tokens=visual)
