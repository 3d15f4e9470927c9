"""The token check of a server, for every kind of call.

Promises that without the token no call but a health probe reaches its handler; leaves the token's way
to the server (a file) and TLS to `channel`.
"""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from shared.rpc.errors import TokenError, abort

# Probes carry no token, and tell nothing but readiness; Watch would give strangers streams that stay open.
OPEN_METHOD = "/grpc.health.v1.Health/Check"


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls whose `authorization` is not `Bearer TOKEN`, compared in constant time."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method == OPEN_METHOD:
            return handler
        for key, value in handler_call_details.invocation_metadata:
            shown = value if isinstance(value, bytes) else value.encode()
            if key == "authorization" and hmac.compare_digest(shown, self._expected):
                return handler
        return _refusing(handler)


def _refusing(handler: Any) -> Any:
    """A handler of the same arity that refuses: gRPC would hang on one of another."""

    async def refuse(_request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        await abort(context, TokenError())

    async def refuse_stream(_request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        await abort(context, TokenError())
        yield  # never reached: makes this an async generator, which streams need

    if handler.response_streaming:
        kind = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else (grpc.unary_stream_rpc_method_handler)
        )
        return kind(refuse_stream, handler.request_deserializer, handler.response_serializer)
    kind = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
    return kind(refuse, handler.request_deserializer, handler.response_serializer)
