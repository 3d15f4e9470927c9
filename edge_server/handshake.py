"""Whether a device and this server run the same model and codec, and the error when they do not.

Promises to compare content hashes only: versions and names appear in the message and decide nothing. A server may have
several codecs, of which each session uses the one that its device names.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_server.settings import SessionLimits
from tofc.errors import MismatchError
from tofc.v1 import tofc_pb2 as pb

NAMED = 8  # codecs in a message


@dataclass(frozen=True, kw_only=True)
class KnownCodec:
    """A codec of the server's checkpoint."""

    name: str
    codec_id: str
    entropy_model: str = ""  # empty: it was not loaded, so no session can use it

    @property
    def served(self) -> bool:
        """Whether sessions can use it."""
        return bool(self.entropy_model)

    def __str__(self) -> str:
        return f"{self.name} ({f'{self.entropy_model}, ' if self.served else ''}{self.codec_id})"


@dataclass(frozen=True, kw_only=True)
class ServerIdentity:
    """A server's version, and the content hashes of its model and codecs."""

    version: str
    model_id: str
    codecs: tuple[KnownCodec, ...]  # of its checkpoint; the first is served

    @property
    def codec_id(self) -> str:
        """The codec that is named where no session says which: of those served, the default one if it is."""
        return self.codecs[0].codec_id

    def welcome(
        self, limits: SessionLimits, picture_key: bytes, *, codec_id: str, samples_by_default: bool, thinking: bool
    ) -> pb.Welcome:
        """Return the response to Hello. `codec_id` is the codec of the session."""
        return pb.Welcome(
            server_version=self.version,
            model_id=self.model_id,
            codec_id=codec_id,
            limits=limits.message,
            picture_key=picture_key,
            samples_by_default=samples_by_default,
            thinking=thinking,
        )


def check_hello(hello: pb.Hello, identity: ServerIdentity) -> None:
    """Check that the server has the model and serves the codec. Raises MismatchError (MODEL_, CODEC_MISMATCH)."""
    if hello.model_id != identity.model_id:
        raise MismatchError(
            f"{_theirs('model', hello.model_id, hello)}, the server has model {identity.model_id!r} (version "
            f"{identity.version}). {_update('model')}",
            reason="MODEL_MISMATCH",
        )
    served = [codec for codec in identity.codecs if codec.served]
    if any(hello.codec_id == codec.codec_id for codec in served):
        return
    ours = ", ".join(map(str, served[:NAMED])) + ", …" * (len(served) > NAMED)
    for known in identity.codecs:
        if hello.codec_id == known.codec_id:
            raise MismatchError(
                f"the device uses the codec {known} of this model, the server was started with --feature-codec for "
                f"{ours}. Give the device --feature-codec {served[0].name}; or start the server with --feature-codec "
                f"{known.name}, or without that option: it then takes every codec of its model.",
                reason="CODEC_MISMATCH",
            )
    raise MismatchError(
        f"{_theirs('codec', hello.codec_id, hello)}, the server (version {identity.version}) has {ours}. "
        f"{_update('codec')}",
        reason="CODEC_MISMATCH",
    )


def _theirs(what: str, identity: str, hello: pb.Hello) -> str:
    shown = repr(identity[:64]) if identity else "none"
    return f"the device has {what} {shown} (version {hello.client_version[:32] or 'unknown'})"


def _update(what: str) -> str:
    return (
        "Update the device: give it the device half of the checkpoint that the server runs; or, where the device's "
        f"{what} is the newer one, update the server."
    )
