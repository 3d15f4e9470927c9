"""Ask a vision-language model about pictures over a narrow link: about 50 bytes of each leave the device.

    from tofc import Client

    with Client("127.0.0.1:50061") as edge:
        picture = edge.picture("street.jpg")
        print(picture.ask("how many cats are there?").text)

Promises that `import tofc` loads neither grpc nor torch: what needs them is loaded when it is first used. Leaves the
work to its subpackages; docs/python.md describes the clients.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tofc.errors import (
    CallError,
    CancelledError,
    CheckpointError,
    CodecError,
    CorruptPacketError,
    CredentialsError,
    DeadlineError,
    DuplicateError,
    EncoderError,
    EncodingError,
    Error,
    ImageCodecError,
    ImageError,
    InternalError,
    InvalidRequestError,
    LimitError,
    LinkLostError,
    MismatchError,
    PacketError,
    ReplyError,
    ResourceError,
    SecurityError,
    TlsError,
    TokenError,
    UnavailableError,
    UnknownReferenceError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from tofc.client import AsyncClient, Client
    from tofc.codec.codec import Codec
    from tofc.model.checkpoint import Checkpoint

    __version__: str

__all__ = [
    "AsyncClient",
    "CallError",
    "CancelledError",
    "Checkpoint",
    "CheckpointError",
    "Client",
    "Codec",
    "CodecError",
    "CorruptPacketError",
    "CredentialsError",
    "DeadlineError",
    "DuplicateError",
    "EncoderError",
    "EncodingError",
    "Error",
    "ImageCodecError",
    "ImageError",
    "InternalError",
    "InvalidRequestError",
    "LimitError",
    "LinkLostError",
    "MismatchError",
    "PacketError",
    "ReplyError",
    "ResourceError",
    "SecurityError",
    "TlsError",
    "TokenError",
    "UnavailableError",
    "UnknownReferenceError",
    "UnsupportedError",
    "UsageError",
    "__version__",
]

_LAZY = {
    "AsyncClient": "tofc.client",
    "Checkpoint": "tofc.model.checkpoint",
    "Client": "tofc.client",
    "Codec": "tofc.codec.codec",
}


def __getattr__(name: str) -> Any:
    """Load what is used for the first time (PEP 562)."""
    if name == "__version__":
        found: Any = import_module("tofc.version").software_version()
    elif name in _LAZY:
        found = getattr(import_module(_LAZY[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
