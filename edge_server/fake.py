"""A backend without weights: bytes stand for features, text and tokens.

Promises the same checks and errors as the real backend, so that sessions are tested in milliseconds. Leaves the answers
to the engine that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_server.assemble import Assembled, PictureRows, too_long
from edge_server.backend import Backend
from edge_server.engine.base import Engine, Prompt
from edge_server.engine.fake import FakeEngine
from edge_server.handshake import KnownCodec
from edge_server.reasoning import ThinkTokens
from tofc.errors import CorruptPacketError
from tofc.model.feature_codecs import DEFAULT
from tofc.model.generation import GREEDY, GenerationConfig
from tofc.model.prompt import Turn
from tofc.model.views import MEAN, STD, ViewRule

CORRUPT = b"corrupt"  # a packet that starts with this is refused


class FakeAssembler:
    """Turns every byte of a packet, and of the turns' text, into one row [1] that holds the byte's value.

    The views of a packet of several have equal parts of it.
    """

    def views(self, packet: bytes, *, codec_id: str, count: int, last: bool) -> Sequence[NDArray[np.float32]]:
        """See `Assembler`."""
        if not packet or packet.startswith(CORRUPT) or len(packet) % count:
            raise CorruptPacketError(f"{packet[:16]!r} is not a packet; send the view again")
        return np.split(_rows(packet), count)

    def prompt(self, turns: Sequence[Turn], pictures: Sequence[PictureRows], max_rows: int) -> Assembled:
        """See `Assembler`."""
        views = [view for picture in pictures for view in picture.views]
        embeds = np.concatenate([*views, *(_rows(turn.text.encode()) for turn in turns)])
        if len(embeds) > max_rows:
            raise too_long(len(embeds), max_rows)
        prompt = Prompt(embeds=embeds)
        return Assembled(prompt=prompt, ids=prompt_bytes(prompt), visual_tokens=sum(len(view) for view in views))

    def continued(self, prompt: Prompt, ids: Sequence[int]) -> Prompt:
        """See `Assembler`."""
        return replace(prompt, embeds=np.concatenate([prompt.embeds, _rows(bytes(ids))]))

    def beginning(self, turns: Sequence[Turn], pictures: Sequence[PictureRows], max_rows: int) -> Prompt | None:
        """See `Assembler`."""
        views = [view for picture in pictures for view in picture.views]
        missing = any(len(one.views) <= one.rows * one.columns for one in pictures)
        rows = sum(map(len, views))
        return Prompt(embeds=np.concatenate(views)) if missing and 0 < rows <= max_rows else None


class FakeViewEncoder:
    """Turns a view into rows [1, 1]: the mean of its red. `before` is called in the worker thread before each part.

    A part has up to `together` views of one size; `parts` are their numbers of views.
    """

    def __init__(self, before: Callable[[], object] = lambda: None, together: int = 1) -> None:
        self.rule = ViewRule(global_size=336, crop_size=224, max_side=1344)
        self.encoded = 0
        self.parts: list[int] = []
        self._together = together
        self._before = before

    def at_once(self, side: int) -> int:
        """See `ViewEncoder`."""
        return self._together

    def encode(self, views: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """See `ViewEncoder`."""
        self._before()
        self.encoded += len(views)
        self.parts.append(len(views))
        reds = [(pixels[0].mean() * STD[0] + MEAN[0]) * 255 for pixels in views]
        return [np.array([[round(red)]], np.float32) for red in reds]


def prompt_bytes(prompt: Prompt) -> bytes:
    """Return what a fake prompt was made of: the bytes of the packets, then those of the text."""
    return bytes(prompt.embeds[:, 0].astype(np.uint8))


def decode_bytes(ids: Sequence[int]) -> str:
    """Turn token ids that are UTF-8 bytes into text."""
    return bytes(ids).decode("utf-8", "replace")


def fake_backend(
    answer: Callable[[bytes], bytes] = lambda prompt: prompt,
    *,
    engine: Engine | None = None,
    view_encoder: FakeViewEncoder | None = None,
    think_tokens: ThinkTokens | None = None,
    generation_config: GenerationConfig = GREEDY,
    codecs: tuple[KnownCodec, ...] = (KnownCodec(name=DEFAULT, codec_id="fake-codec", entropy_model="fake"),),
) -> Backend:
    """Make a backend whose engine answers with `answer` of the prompt's bytes, unless another engine is given."""
    return Backend(
        model_id="fake-model",
        codecs=codecs,
        max_views=37,
        assembler=FakeAssembler(),
        engine=engine or FakeEngine(lambda prompt: list(answer(prompt_bytes(prompt)))),
        decode=decode_bytes,
        think_tokens=think_tokens,
        generation_config=generation_config,
        view_encoder=view_encoder or FakeViewEncoder(),
    )


def _rows(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, np.uint8).astype(np.float32)[:, None]  # [n, 1]
