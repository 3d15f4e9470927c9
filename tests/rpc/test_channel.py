"""gRPC options by their effect, addresses, and who may connect without TLS."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from tofc.errors import SecurityError, UnavailableError
from tofc.rpc.address import is_loopback, join_address, split_address
from tofc.rpc.channel import (
    MAX_DOWN_BYTES,
    MAX_UP_BYTES,
    Keepalive,
    Options,
    bind,
    client_options,
    dial,
    make_server,
    server_options,
)
from tofc.rpc.security import ClientSecurity, ServerSecurity, read_token


@pytest.mark.parametrize(
    "text, host, port",
    [
        ("127.0.0.1:5", "127.0.0.1", 5),
        ("edge.example.org:443", "edge.example.org", 443),
        ("localhost", "localhost", 50061),
        ("[::1]:5", "::1", 5),
        ("[::1]", "::1", 50061),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert split_address(text) == (host, port)
    assert split_address(join_address(host, port)) == (host, port)


@pytest.mark.parametrize("text", ["", ":5", "::1", "::1:5", "a:b", "a:70000", "a:-1"])
def test_texts_that_are_not_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="the address must be HOST:PORT"):
        split_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "localhost.example.org", "127.0.0.1.nip.io", ""])
def test_other_machines(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "security, missing",
    [
        (ClientSecurity(), r"missing: TLS \(--tls-ca\) and a token \(--token-file\)\."),
        (ClientSecurity(token="0123456789abcdef"), r"missing: TLS \(--tls-ca\)\."),
        (ClientSecurity(tls=True), "missing: a token"),
    ],
)
def test_dialling_another_machine_needs_tls_and_a_token(security: ClientSecurity, missing: str) -> None:
    with pytest.raises(SecurityError, match=missing):
        dial("192.168.1.2:5", security)


async def test_dialling_another_machine_with_both(tmp_path: Path) -> None:
    await dial("192.168.1.2:5", ClientSecurity(tls=True, token="0123456789abcdef")).close()


async def test_listening_beyond_this_machine_needs_tls_and_a_token() -> None:
    server = make_server()
    for host in ("0.0.0.0", "::"):
        with pytest.raises(SecurityError, match="listening on"):
            bind(server, host, 0, ServerSecurity(token="0123456789abcdef"))
    with pytest.raises(SecurityError, match="the certificate is missing"):
        ServerSecurity(key=b"key")
    await server.stop(0)


async def test_one_port_one_server() -> None:
    first, second = make_server(), make_server()
    port = bind(first, "127.0.0.1", 0)
    assert port > 0
    with pytest.raises(UnavailableError, match="the port is taken"):
        bind(second, "127.0.0.1", port)
    await first.stop(0)
    await second.stop(0)


def test_secrets_are_not_shown() -> None:
    shown = repr(ClientSecurity(token="secret-secret-secret", ca=b"pem")) + repr(
        ServerSecurity(certificate=b"pem", key=b"key-key", token="secret-secret-secret")
    )
    assert "secret" not in shown and "pem" not in shown and "key-key" not in shown


@pytest.mark.parametrize("text", ["", "short", "0123456789abcde f", "0123456789abcdeé", "0123456789abcdef\nmore"])
def test_texts_that_are_not_tokens(text: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SecurityError, match="openssl rand"):
        read_token(file)


@pytest.mark.parametrize("written", ["{}\n", "{}", "\ufeff{}\r\n", "{}\r", "\n {}\t\n", "\ufeff\n\ufeff{}"])
def test_a_token_is_a_line_with_any_line_end(written: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(written.format("0123456789abcdef").encode())
    assert read_token(tmp_path / "token") == "0123456789abcdef"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_token_in_utf_16_is_named(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes("0123456789abcdef\r\n".encode(encoding))
    with pytest.raises(ValueError, match="token is UTF-16 text; save it as UTF-8"):
        read_token(tmp_path / "token")


def echo_server() -> tuple[grpc.aio.Server, int]:
    async def echo(request: bytes, context: Any) -> bytes:
        return request[:1] * int.from_bytes(request[1:5], "big") if len(request) == 5 else request[:1]

    server = make_server()
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    return server, bind(server, "127.0.0.1", 0)


async def test_message_caps_both_ways() -> None:
    server, port = echo_server()
    await server.start()
    unbounded = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1)])
    async with dial(f"127.0.0.1:{port}") as channel, unbounded:
        call: Any = channel.unary_unary("/test.Test/Echo")
        assert await call(bytes(MAX_UP_BYTES)) == b"\0"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(bytes(MAX_UP_BYTES + 1))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as refused:  # a client that ignores the limit
            await unbounded.unary_unary("/test.Test/Echo")(bytes(MAX_UP_BYTES + 1))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(await call(b"x" + MAX_DOWN_BYTES.to_bytes(4, "big"))) == MAX_DOWN_BYTES
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"x" + (MAX_DOWN_BYTES + 1).to_bytes(4, "big"))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await server.stop(0)


def test_the_option_that_permits_pings_is_spelled_as_grpc_reads_it() -> None:
    options = dict(server_options())
    assert options["grpc.http2.min_ping_interval_without_data_ms"] == 10_000
    assert not [name for name in options if "recv_ping" in name]
    with pytest.raises(ValueError, match="client_interval_ms must be at least min_interval_ms"):
        Keepalive(client_interval_ms=5_000)


@pytest.mark.parametrize("options", [client_options(), server_options()])
def test_a_link_that_dies_silently_is_detected_within_35_s(options: Options) -> None:
    values = dict(options)
    detected = int(values["grpc.keepalive_time_ms"]) + int(values["grpc.http2.ping_timeout_ms"])
    assert max(detected, int(values["grpc.keepalive_timeout_ms"])) <= 35_000


async def test_a_proxy_of_the_environment_is_not_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server, port = echo_server()
    await server.start()
    async with dial(f"127.0.0.1:{port}") as channel, asyncio.timeout(20):
        assert await channel.unary_unary("/test.Test/Echo")(b"a") == b"a"
    await server.stop(0)
