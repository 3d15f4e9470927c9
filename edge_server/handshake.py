"""Whether a device and this server fit, and what to say when they do not.

Promises to compare only identities (content hashes); leaves versions to people: they appear in the
sentence and never decide.
"""

from dataclasses import dataclass

from edge_server.settings import SessionLimits
from shared.rpc.errors import MismatchError
from shared.rpc.tofc.v1 import tofc_pb2


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a server is: its version, and the ids of the model and codec both halves come from."""

    version: str
    model_id: str
    codec_id: str

    def welcome(self, limits: SessionLimits, picture_key: bytes, *, draws: bool) -> tofc_pb2.Welcome:
        return tofc_pb2.Welcome(
            server_version=self.version,
            model_id=self.model_id,
            codec_id=self.codec_id,
            limits=limits.message,
            picture_key=picture_key,
            draws=draws,
        )


def check_hello(hello: tofc_pb2.Hello, identity: Identity) -> None:
    """Raises MismatchError (MODEL_MISMATCH, CODEC_MISMATCH) unless both ids are the server's."""
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
