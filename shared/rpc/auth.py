"""The token check of a server, for every kind of call.

Promises that without a token that holds now no call but a health probe reaches its handler; leaves which tokens hold
to `tokens` and TLS to `channel`.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from shared.rpc.errors import TokenError, abort
from shared.rpc.tokens import Token, shown

# Probes carry no token, and tell nothing but readiness; Watch would give strangers streams that stay open.
OPEN_METHOD = "/grpc.health.v1.Health/Check"


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls whose `authorization` is not `Bearer TOKEN` of one of the `tokens` at that time."""

    def __init__(self, tokens: Callable[[], Sequence[Token]]) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method == OPEN_METHOD:
            return handler
        return handler if shown(self._tokens(), handler_call_details.invocation_metadata) else _refusing(handler)


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
