"""A server's check of tokens, for every kind of call.

Promises that no call except a health probe reaches its handler without a currently valid token. Leaves reading tokens
to `tokens`, TLS to `channel`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from tofc.errors import TokenError
from tofc.rpc.errors import abort
from tofc.rpc.tokens import Token, find_token

# Health probes have no token and reveal only readiness. Not Watch, with which strangers could hold streams open.
METHOD_WITHOUT_TOKEN = "/grpc.health.v1.Health/Check"


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls whose `authorization` is not `Bearer TOKEN` with one of the tokens that are valid now."""

    def __init__(self, tokens: Callable[[], Sequence[Token]]) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method == METHOD_WITHOUT_TOKEN:
            return handler
        return handler if find_token(self._tokens(), handler_call_details.invocation_metadata) else _refusing(handler)


def _refusing(handler: Any) -> Any:
    """Return a refusing handler of the same arity; with another arity gRPC would hang."""

    async def refuse(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await abort(context, TokenError())

    async def refuse_stream(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        await abort(context, TokenError())
        yield  # never reached, but makes this an async generator, which a stream needs

    if handler.response_streaming:
        kind = grpc.stream_stream_rpc_method_handler
        if not handler.request_streaming:
            kind = grpc.unary_stream_rpc_method_handler
        return kind(refuse_stream, handler.request_deserializer, handler.response_serializer)
    kind = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
    return kind(refuse, handler.request_deserializer, handler.response_serializer)
