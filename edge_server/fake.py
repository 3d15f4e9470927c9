"""A backend without weights: bytes stand for features, text and tokens.

Promises the checks and errors of the real one at its seams, so that sessions are tested in
milliseconds; leaves what to answer to the engine it is given.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_server.assemble import Assembled, PictureRows, too_long
from edge_server.backend import Backend
from edge_server.engine.base import Engine, Prompt
from edge_server.engine.fake import FakeEngine
from edge_server.thinking import Marks
from shared.model.generation import GREEDY, Defaults
from shared.model.prompt import Turn
from shared.model.views import MEAN, STD, ViewRule
from shared.rpc.errors import CorruptPacketError

CORRUPT = b"corrupt"  # a packet that begins so is refused


class FakeAssembler:
    """Every byte of a packet, and of the turns' text, is one row [1, 1] holding its value."""

    def view(self, packet: bytes, *, last: bool) -> NDArray[np.float32]:
        if not packet or packet.startswith(CORRUPT):
            raise CorruptPacketError(f"{packet[:16]!r} is no packet; send the view again")
        return _rows(packet)

    def prompt(self, turns: Sequence[Turn], pictures: Sequence[PictureRows], most: int) -> Assembled:
        views = [view for picture in pictures for view in picture.views]
        embeds = np.concatenate([*views, *(_rows(turn.text.encode()) for turn in turns)])
        if len(embeds) > most:
            raise too_long(len(embeds), most)
        prompt = Prompt(embeds=embeds)
        return Assembled(prompt=prompt, ids=prompt_bytes(prompt), visual_tokens=sum(len(view) for view in views))


class FakeLooker:
    """A view is one row [1, 1]: the mean of its red. `before` is called in the worker thread before each view."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.rule = ViewRule(global_size=336, crop_size=224, max_side=1344)
        self.looked = 0
        self._before = before

    def look(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        self._before()
        self.looked += 1
        red = (pixels[0].mean() * STD[0] + MEAN[0]) * 255
        return np.array([[round(red)]], np.float32)


def prompt_bytes(prompt: Prompt) -> bytes:
    """What a fake prompt was made of: the packets' bytes, then the text's."""
    return bytes(prompt.embeds[:, 0].astype(np.uint8))


def decode_bytes(ids: Sequence[int]) -> str:
    """Token ids that are UTF-8 bytes → text."""
    return bytes(ids).decode("utf-8", "replace")


def fake_backend(
    answer: Callable[[bytes], bytes] = lambda prompt: prompt,
    *,
    engine: Engine | None = None,
    looker: FakeLooker | None = None,
    marks: Marks | None = None,
    defaults: Defaults = GREEDY,
) -> Backend:
    """A backend whose engine answers with `answer` of the prompt's bytes, unless another engine is given."""
    return Backend(
        model_id="fake-model",
        codec_id="fake-codec",
        most_views=37,
        assembler=FakeAssembler(),
        engine=engine or FakeEngine(lambda prompt: list(answer(prompt_bytes(prompt)))),
        decode=decode_bytes,
        marks=marks,
        defaults=defaults,
        looker=looker or FakeLooker(),
    )


def _rows(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, np.uint8).astype(np.float32)[:, None]  # [n, 1]
