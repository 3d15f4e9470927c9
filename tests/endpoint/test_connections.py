"""Connections that are silent, slow or unread do not hold their places for ever."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from pathlib import Path

import pytest

from device_client.endpoint import protocol
from device_client.fake import FakeEncoder
from edge_server.engine.fake import FakeEngine
from edge_server.fake import fake_backend
from tests.e2e.conftest import ServerThread
from tests.endpoint.conftest import WAIT_S, Begin, EndpointThread, client
from tests.endpoint.requests import CHAT


def connect(endpoint: EndpointThread, buffer_bytes: int | None = None) -> socket.socket:
    """Open a connection; `buffer_bytes`: of what arrives unread, the system's default for None."""
    host, _, port = endpoint.address.rpartition(":")
    made = socket.socket()
    made.settimeout(WAIT_S)
    if buffer_bytes is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    made.connect((host, int(port)))
    return made


def closed(connection: socket.socket) -> bool:
    """Wait until the other end has closed; fail after WAIT_S."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"\r\n"])
def test_a_connection_without_a_request_is_closed(begin: Begin, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)
    endpoint = begin(requests=1)
    silent = [connect(endpoint) for _ in range(8)]  # twice as many as it takes
    for one in silent:
        one.sendall(sent)
        assert closed(one)
        one.close()
    with client(endpoint) as http:
        assert "error" not in http.get("/v1/models").json()


def test_a_byte_after_a_response_does_not_hold_the_connection(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)
    endpoint = begin()
    with connect(endpoint) as connection:
        connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {endpoint.address}\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"G")
        assert closed(connection)


def test_a_client_without_a_key_does_not_keep_a_connection(begin: Begin, tmp_path: Path) -> None:
    (keys := tmp_path / "keys").touch(mode=0o600)
    keys.write_text("kitchen-0123456789abcdef\n")
    page = "https://camera.example"
    endpoint = begin(api_key_file=keys, allow_origin=[page])
    asking = f"OPTIONS {CHAT}", f"Origin: {page}\r\nAccess-Control-Request-Method: POST\r\n"
    for line, headers in (("GET /health", ""), ("GET /v1/models", ""), ("GET /none", ""), asking):
        with connect(endpoint) as connection:
            connection.sendall(f"{line} HTTP/1.1\r\nHost: {endpoint.address}\r\n{headers}\r\n".encode())
            head = connection.recv(65536)
            assert head.startswith(b"HTTP/1.1 ") and b"connection: close" in head.lower(), head
            assert closed(connection)
    kept = http.client.HTTPConnection(endpoint.address, timeout=WAIT_S)
    for _ in range(2):  # who has a key may ask again
        kept.request("GET", "/v1/models", headers={"Authorization": "Bearer kitchen-0123456789abcdef"})
        response = kept.getresponse()
        assert response.status == 200 and response.read() and not response.will_close
    kept.close()


def test_an_answer_that_takes_longer_than_a_head_may_is_not_ended(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.05)
    endpoint = begin()
    with client(endpoint) as http:  # the model is not loaded yet
        response = http.post(CHAT, json={"messages": [{"role": "user", "content": "?"}], "max_tokens": 50})
    assert response.status_code == 200


def test_a_client_that_does_not_read_ends_its_answer(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "READ_S", 0.2)
    gate = asyncio.Event()
    engine = FakeEngine(lambda _: list(b"x" * 100), gate=gate)
    edge = ServerThread(fake_backend(engine=engine))
    try:
        made = FakeEncoder(model_id="fake-model", codec_id="fake-codec")
        endpoint = begin(edge.address, encoder=made, served_model="x" * 2_000_000)  # which each event names
        body = json.dumps({"messages": [{"role": "user", "content": "?"}], "stream": True}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {endpoint.address}\r\nContent-Length: {len(body)}\r\n\r\n"
        with connect(endpoint, buffer_bytes=4096) as connection:
            connection.sendall(head.encode() + body)
            edge.run(engine.busy.wait())
            edge.run(_ten_tokens(engine, gate))
            edge.run(asyncio.wait_for(engine.idle.wait(), WAIT_S))
            assert engine.cancelled == 1
        with client(endpoint) as http:
            assert 'outcome="gone"} 1.0' in http.get("/metrics").text
    finally:
        edge.stop()


async def _ten_tokens(engine: FakeEngine, gate: asyncio.Event) -> None:
    gate.set()
    while engine.steps < 10:
        await asyncio.sleep(0)
    gate.clear()
