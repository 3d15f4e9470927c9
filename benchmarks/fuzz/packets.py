"""Hostile packets: checks that must hold for any bytes, and mutations that get past the decoder's first checks.

    selector (1 byte) │ packet      a case: which of the codecs decodes it, and the bytes that it decodes

Packets have one view or several. Mutations use only two facts about them: the header of half a byte and the checksum
at the end. Leaves recording findings and choosing among cases to the caller.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from random import Random

import numpy as np

from benchmarks.fuzz import Finding
from tofc.codec import Codec, CodecWeights, CodedView, checksum, packet
from tofc.codec.fake import fake_features, fake_weights
from tofc.codec.index.fake import fake_index_weights
from tofc.codec.selective_hyperprior.fake import fake_selective_hyperprior
from tofc.errors import PacketError
from tofc.packet_limits import MOST_VIEWS

Blind = Callable[[bytes], bytes]  # a mutation that knows nothing of the format

REASON = re.compile(r"[A-Z]+(_[A-Z]+)*")


def codecs() -> list[Codec]:
    """Return small codecs of every entropy model, of one to three qualities; the second accepts only small grids."""
    made: list[CodecWeights] = [
        fake_weights(D=12, M=6, H=4, Q=number, slices=number, seed=number) for number in (1, 2, 3)
    ]
    made[1] = replace(made[1], config=replace(made[1].config, max_grid=6))
    made += [
        fake_selective_hyperprior(D=12, H=4, Q=2, seed=4),
        fake_selective_hyperprior(D=12, M=6, H=4, seed=5),
        fake_index_weights(D=12, M=6, H=4, K=(48, 12, 2), Q=2, seed=6),
        fake_index_weights(D=12, M=6, H=4, K=(30,), seed=7),
    ]
    return [Codec(weights) for weights in made]


def with_valid_crc(content: bytes) -> bytes:
    """Append a valid checksum to any content; only the lower half of its first byte is used."""
    return checksum.append_crc(bytes([(content or b"\0")[0] & 15]) + content[1:])


def strip_crc(data: bytes) -> bytes:
    """Return the content of a packet: the inverse of `with_valid_crc`."""
    return checksum.strip_crc(data.rjust(2, b"\0"))


def canonicalised(codec: Codec, data: bytes) -> bytes | None:
    """Return the canonical packet with the same content; None if the bytes do not decode to symbols."""
    with _written() as written, suppress(PacketError):
        codec.decode_views(data)
    return written[-1] if written else None


@contextmanager
def _written() -> Iterator[list[bytes]]:
    """Collect every packet that `packet.write` makes: a decoder makes one to compare it with the bytes received."""
    original, seen = packet.write, []

    def write(*args: object, **more: object) -> bytes:
        seen.append(original(*args, **more))  # type: ignore[arg-type]
        return seen[-1]

    packet.write = write  # type: ignore[assignment]
    try:
        yield seen
    finally:
        packet.write = original


def check(codec: Codec, data: bytes) -> str:
    """Check a codec's promises for any bytes; return the reason of refusal, or a hash of the decoded content.

    Raises `Finding`, and any exception of the decoder's that is not a `PacketError`.
    """
    with _written() as written:
        try:
            views = codec.decode_views(data)
        except PacketError as error:
            if not REASON.fullmatch(error.reason) or len(str(error)) < 10:
                raise Finding(f"refused without a reason or a message: {error.reason!r}, {error}") from error
            return error.reason
    if written[-1] != data:
        raise Finding(f"{data.hex()} was accepted, but an encoder writes {written[-1].hex()}")
    if not 1 <= len(views) <= MOST_VIEWS:
        raise Finding(f"{data.hex()} was accepted with {len(views)} views")
    digest = hashlib.sha256()
    for view in views:
        n, cells = len(view.positions), view.positions
        rules = {
            "grid": 1 <= view.grid <= codec.config.max_grid,
            "number of features": n >= 1 and view.features.shape == (n, codec.config.feature_dim),
            "order of positions": (np.diff(cells) > 0).all(),
            "positions": cells[0] >= 0 and cells[-1] < view.grid**2,
            "numbers": np.isfinite(view.features).all(),
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise Finding(f"{data.hex()} was accepted with wrong {', '.join(broken)}")
        digest.update(cells.tobytes() + view.features.tobytes() + bytes([view.grid, view.quality]))
    return digest.hexdigest()


def _set(body: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) + body[at + 1 :]


def _flip(body: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(body) or 1)
    return body[:at] + bytes([(body[at : at + 1] or b"\0")[0] ^ 1 << rng.randrange(8)]) + body[at + 1 :]


def _cut(body: bytes, rng: Random) -> bytes:
    first, last = sorted(rng.choices(range(len(body) + 1), k=2))
    return rng.choice((body[:last], body[:first] + body[last:]))


def _grow(body: bytes, rng: Random) -> bytes:
    at, size = rng.randrange(len(body) + 1), rng.choice((1, 2, 8, 100, 1000, 6000))
    return body[:at] + rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size), body[:size])) + body[at:]


CHANGES: tuple[Callable[[bytes, Random], bytes], ...] = (_set, _flip, _cut, _grow)


class Packets:
    """A fuzzing target: `seeds` are the first cases, `mutate` makes more, `run` runs one."""

    name = "packet"
    longest = 8192  # bytes of a case; a packet of these codecs is shorter

    def __init__(self) -> None:
        self.codecs = codecs()
        self._heads = sorted({strip_crc(seed[1:])[:2] for seed in self.seeds()})  # header and first byte after it

    def seeds(self) -> Iterator[bytes]:
        """Yield valid packets of every codec, of several grids and n."""
        for selector, codec in enumerate(self.codecs):
            for side in (1, 2, 4, 5, 6, 9, 13, 16):
                if side <= codec.config.max_grid:
                    views = fake_features(codec.weights, side**2, seed=side)
                    for n in sorted({1, side**2 // 2, side**2 - 1, side**2} - {0}):
                        yield bytes([selector]) + codec.encode(views, n, n % codec.config.qualities)
            for sides in ((4, 4), (4, 4, 6), (1, 5, 5, 2)):
                several = [
                    codec.code(fake_features(codec.weights, side**2, seed=at), side**2 - at % 2 * (side > 1))
                    for at, side in enumerate(sides)
                ]
                yield bytes([selector]) + codec.write(several)

    def run(self, data: bytes) -> str:
        """Run one case; return the reason of refusal, or TAKEN."""
        outcome = check(*self._split(data))
        return outcome if REASON.fullmatch(outcome) else "TAKEN"

    def mutate(self, data: bytes, rng: Random, blind: Blind) -> bytes:
        """Change a case. Most results have a valid checksum, and some are canonical packets."""
        codec, sent = self._split(data)
        selector = self.codecs.index(codec)
        if rng.random() < 0.05:
            selector = rng.randrange(len(self.codecs))
            codec = self.codecs[selector]
        if rng.random() < 0.02:
            return bytes([selector]) + self._encoded(codec, rng)
        body = strip_crc(sent)
        for _ in range(rng.choice((1, 1, 2, 4))):
            kept = rng.choice((0, 1, 1, 1, 2))  # most changes of the header make it invalid
            body = body[:kept] + (blind if rng.random() < 0.3 else partial(rng.choice(CHANGES), rng=rng))(body[kept:])
        if rng.random() < 0.1:
            body = rng.choice(self._heads) + body[2:]
        body = body[: self.longest - 1]
        sent = with_valid_crc(body) if rng.random() < 0.95 else body
        if rng.random() < 0.1:
            sent = canonicalised(codec, sent) or sent
        return bytes([selector]) + sent

    def _split(self, data: bytes) -> tuple[Codec, bytes]:
        return self.codecs[data[0] % len(self.codecs) if data else 0], data[1:]

    def _encoded(self, codec: Codec, rng: Random) -> bytes:
        return codec.write([self._coded(codec, rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))])

    def _coded(self, codec: Codec, rng: Random) -> CodedView:
        side = rng.randint(1, codec.config.max_grid)
        view = fake_features(codec.weights, side**2, seed=rng.randrange(1 << 32))
        return codec.code(view * np.float32(rng.choice((0, 1, 1, 10, 1e20))), rng.randint(1, side**2))
