"""Whether a device and this server run the same model and codec, and the error when they do not.

Promises to compare content hashes only: versions appear in the message and decide nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_server.settings import SessionLimits
from tofc.errors import MismatchError
from tofc.v1 import tofc_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class ServerIdentity:
    """A server's version, and the content hashes of its model and codec."""

    version: str
    model_id: str
    codec_id: str

    def welcome(self, limits: SessionLimits, picture_key: bytes, *, samples_by_default: bool) -> pb.Welcome:
        """Return the response to Hello."""
        return pb.Welcome(
            server_version=self.version,
            model_id=self.model_id,
            codec_id=self.codec_id,
            limits=limits.message,
            picture_key=picture_key,
            samples_by_default=samples_by_default,
        )


def check_hello(hello: pb.Hello, identity: ServerIdentity) -> None:
    """Check that both ids are the server's. Raises MismatchError (MODEL_MISMATCH, CODEC_MISMATCH)."""
    for what, theirs, ours in (
        ("model", hello.model_id, identity.model_id),
        ("codec", hello.codec_id, identity.codec_id),
    ):
        if theirs != ours:
            shown = repr(theirs[:64]) if theirs else "none"
            raise MismatchError(
                f"the device has {what} {shown} (version {hello.client_version[:32] or 'unknown'}), the server has "
                f"{what} {ours!r} (version {identity.version}). Update the device: give it the device half of the "
                f"checkpoint that the server runs; or, where the device's {what} is the newer one, update the server.",
                reason=f"{what.upper()}_MISMATCH",
            )
