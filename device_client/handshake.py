"""The handshake of a link: send Hello, receive Welcome, check that device and server have the same model and codec.

Promises to compare content hashes only; software versions are for people and never decide. Leaves dialling to `link`.
"""

from __future__ import annotations

import asyncio

import grpc.aio

from device_client.stream import STALLED, Stream
from tofc.error_text import shortened
from tofc.errors import MismatchError, ReplyError, UnavailableError, UnsupportedError
from tofc.rpc.connection_errors import DialTarget, root_cause
from tofc.rpc.errors import from_message
from tofc.rpc.picture_id import KEY_BYTES
from tofc.rpc.security import ClientSecurity
from tofc.v1 import tofc_pb2 as pb


async def shake_hands(
    stream: Stream, hello: pb.Hello, *, dialled: DialTarget, security: ClientSecurity, connect_s: float
) -> pb.Welcome:
    """Send Hello, return the server's Welcome.

    Raises:
        UnavailableError: no server answers at this address, or not within `connect_s`, or Hello did not reach it in
            time (HELLO_MISSING).
        TlsError: no TLS connection that both sides trust.
        MismatchError: the server runs another model or codec.
        TokenError, LimitError, …: the server refuses the session.
        UnsupportedError: it is another gRPC service.
        ReplyError: it breaks the protocol.
    """
    try:
        async with asyncio.timeout(connect_s):
            welcome = await _exchange(stream, hello)
    except TimeoutError:
        raise dialled.timeout_error(connect_s) from None
    except UnavailableError as error:
        if error.reason == UnavailableError.reason:
            raise await dialled.diagnose(security, error.message) from None
        raise
    except UnsupportedError as error:
        raise UnsupportedError(
            f"the program at {dialled} speaks gRPC, but does not know this call ({root_cause(error.message)}); "
            "name an edge server with --server HOST:PORT, or update the older of device and server"
        ) from None
    check_welcome(welcome, hello)
    return welcome


def check_welcome(welcome: pb.Welcome, hello: pb.Hello) -> None:
    """Raise MismatchError unless both sides have the same model and codec, ReplyError for an unusable picture key."""
    for what, ours, theirs in (
        ("model", hello.model_id, welcome.model_id),
        ("codec", hello.codec_id, welcome.codec_id),
    ):
        if ours != theirs:
            raise MismatchError(
                f"the server runs {what} {shortened(theirs, 64)}, this device {ours}; give both sides halves of one "
                f"checkpoint (--model PATH){' and the same --feature-codec NAME' if what == 'codec' else ''}",
                reason=f"{what.upper()}_MISMATCH",
            )
    if len(welcome.picture_key) not in KEY_BYTES:
        raise ReplyError(
            f"the server's picture key has {len(welcome.picture_key)} bytes, allowed are {KEY_BYTES.start} to "
            f"{KEY_BYTES.stop - 1}; device and server may be of different versions"
        )


async def _exchange(stream: Stream, hello: pb.Hello) -> pb.Welcome:
    reading = asyncio.create_task(stream.read())  # before writing: a server that refuses does not wait for Hello
    try:
        await stream.write(pb.SessionRequest(hello=hello))
        response = await reading
    finally:
        reading.cancel()
    if response is grpc.aio.EOF:
        raise await stream.ended() or ReplyError("the server ended the session without a Welcome; its log may say why")
    kind = response.WhichOneof("response")
    if kind == "error":
        error = from_message(response.error)
        raise UnavailableError(error.message, reason=error.reason) if error.reason in STALLED else error
    if kind != "welcome":
        raise ReplyError(f"expected Welcome, got {kind!r}; device and server may be of different versions")
    welcome: pb.Welcome = response.welcome
    return welcome
