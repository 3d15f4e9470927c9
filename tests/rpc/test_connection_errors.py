"""Messages when there is no server: real connections to unknown names and through test proxies."""

from __future__ import annotations

import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_client.link import Link, Target
from edge_server.cli import _get_server_info
from edge_server.credentials import write
from edge_server.fake import fake_backend
from edge_server.server import start
from edge_server.settings import ServerSettings
from tofc.errors import CallError, TlsError, UnavailableError
from tofc.rpc.channel import CONNECT_TIMEOUT_S
from tofc.rpc.connection_errors import EXCEPTIONS, PROXIES, DialTarget
from tofc.rpc.security import ClientSecurity

AWAY = "edge.example.invalid:5"  # a name that cannot exist
TRUSTED = ClientSecurity(tls=True, token="0123456789abcdef")
SECRET = "me:secret"
DIRECTLY = "; to dial it without the proxy set no_proxy=edge.example.invalid"

Proxy = Callable[[bytes | None], str]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *EXCEPTIONS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Start a proxy that always gives the same reply, or none; yield its address."""
    listening, over = list[socketserver.ThreadingTCPServer](), threading.Event()

    def begin(reply: bytes | None) -> str:
        class Answer(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                assert self.rfile.readline().startswith(f"CONNECT {AWAY} ".encode())
                while self.rfile.readline() != b"\r\n":
                    pass
                if reply is None:
                    over.wait()
                else:
                    self.wfile.write(reply)

        listening.append(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=listening[-1].serve_forever, args=(0.01,)).start()
        return f"127.0.0.1:{listening[-1].server_address[1]}"

    yield begin
    over.set()
    for one in listening:
        one.shutdown()
        one.server_close()


async def dial_error(
    address: str, security: ClientSecurity = TRUSTED, connect_s: float = CONNECT_TIMEOUT_S, *, both: bool = True
) -> CallError:
    """Return the device's error; `edge-server info`, which is slower, gives the same apart from the option."""
    with pytest.raises(CallError) as device:
        await Link.open(Target(address=address, security=security, connect_s=connect_s), "", "")
    if both:
        with pytest.raises(CallError) as info:
            await _get_server_info(address, security)
        assert without_tried_address(info.value) == without_tried_address(device.value).replace("--server ", "")
        assert type(info.value) is type(device.value) and "--server" not in str(info.value)
    assert "secret" not in str(device.value)
    return device.value


def without_tried_address(error: CallError) -> str:
    """Remove the address tried from a message: a name's addresses are tried in any order."""
    return re.sub(r" by [^)]*", "", str(error))


async def test_a_name_that_does_not_exist() -> None:
    assert str(await dial_error(AWAY)) == (
        f"the name edge.example.invalid of {AWAY} has no address (Domain name not found); check the name and this "
        "machine's DNS, or give another --server HOST:PORT"
    )


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
async def test_a_port_without_a_server(host: str, free_port: int) -> None:
    message = str(await dial_error(f"{host}:{free_port}", ClientSecurity()))
    tried = rf" by (127\.0\.0\.1|\[::1\]):{free_port}" if host == "localhost" else ""
    expected = rf"no edge server at {re.escape(host)}:{free_port} \(Connection refused{tried}\); start one with"
    assert re.match(expected, message)


@pytest.mark.parametrize("variable", PROXIES)
async def test_a_proxy_that_does_not_listen(variable: str, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, f"http://{SECRET}@127.0.0.1:{free_port}/")
    message = str(await dial_error(AWAY))
    assert message.startswith(
        f"no edge server at {AWAY} through the proxy http://127.0.0.1:{free_port} (set by {variable}) (Connection"
    )
    assert "start one there" in message and message.endswith(DIRECTLY)


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", UnavailableError, f"does not connect to {AWAY} (HTTP status 403)"),
        (b"HTTP/1.1 407 Who are you\r\n\r\n", UnavailableError, f"does not connect to {AWAY} (HTTP status 407)"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", TlsError, f"no TLS connection with {AWAY} through the proxy"),
        (b"", UnavailableError, f"no edge server at {AWAY} through the proxy"),
        (None, UnavailableError, "did not answer within 0.2 s"),
    ],
)
async def test_a_proxy_that_does_not_connect(
    reply: bytes | None, kind: type[CallError], message: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = proxy(reply)
    monkeypatch.setenv("https_proxy", f"http://{SECRET}@{address}")
    error = await dial_error(AWAY, connect_s=0.2 if reply is None else CONNECT_TIMEOUT_S, both=reply is not None)
    assert type(error) is kind and message in str(error)
    assert f"the proxy http://{address} (set by https_proxy)" in str(error) and str(error).endswith(DIRECTLY)


async def test_a_proxy_whose_name_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"http://{SECRET}@proxy.example.invalid:3128")
    message = str(await dial_error(AWAY))
    assert message.startswith("the proxy http://proxy.example.invalid:3128 (set by https_proxy) has no address (Domain")
    assert f"{AWAY} was not reached; correct https_proxy" in message


@pytest.mark.parametrize(
    ("environment", "dialled"),
    [
        ({"https_proxy": "P", "no_proxy": "example.invalid"}, False),
        ({"https_proxy": "P", "no_proxy": "other, EDGE.example.invalid "}, False),
        ({"https_proxy": "P", "no_grpc_proxy": ".invalid", "no_proxy": "other"}, False),
        ({"https_proxy": "P", "no_grpc_proxy": "other", "no_proxy": ".invalid"}, True),
        ({"https_proxy": "P", "no_proxy": "*"}, True),
        ({"https_proxy": "P", "no_proxy": ""}, True),
        ({"https_proxy": "", "http_proxy": "P"}, False),
        ({"https_proxy": "socks5://127.0.0.1:1", "http_proxy": "P"}, False),
        ({"https_proxy": "127.0.0.1:1"}, False),
        ({"HTTPS_PROXY": "P"}, False),
        ({"grpc_proxy": "P", "https_proxy": "http://127.0.0.1:1"}, True),
    ],
)
async def test_the_proxy_that_is_named_is_the_one_that_grpc_dials(
    environment: dict[str, str], dialled: bool, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = proxy(b"HTTP/1.1 418 Teapot\r\n\r\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("P", f"http://{SECRET}@{address}") if value == "P" else value)
    error = str(await dial_error(AWAY, both=False))
    assert ("418" in error) == dialled, error
    assert (DialTarget.of(AWAY).proxy == f"http://{address}") == dialled
    assert ("proxy" in error) == dialled


@pytest.mark.parametrize(
    ("network", "proxied"), [("192.0.2.0/24", False), ("192.0.3.0/24", True), ("192.0.2.7", False)]
)
def test_networks_that_are_dialled_directly(network: str, proxied: bool) -> None:
    found = DialTarget.of("192.0.2.7:5", {"https_proxy": "http://proxy:3128", "no_proxy": network})
    assert bool(found.proxy) == proxied


def test_this_machine_is_dialled_directly() -> None:
    for address in ("127.0.0.1:5", "localhost:5", "[::1]:5"):
        assert str(DialTarget.of(address, {"https_proxy": "http://proxy:3128"})) == address


async def test_tls_with_a_wrong_authority_and_without_tls(tmp_path: Path) -> None:
    ours, other = write(tmp_path / "ours", ["localhost"]), write(tmp_path / "other", ["localhost"])
    settings = ServerSettings(model=Path("unused"), port=0, grace_s=0.0, tls_cert=ours.certificate, tls_key=ours.key)
    running = await start(settings, lambda _: fake_backend())
    address = f"localhost:{running.port}"
    assert "CERTIFICATE_VERIFY_FAILED" in str(
        await dial_error(address, ClientSecurity(ca=other.authority.read_bytes()))
    )
    assert "does not accept connections without TLS" in str(
        await dial_error(f"127.0.0.1:{running.port}", ClientSecurity())
    )
    await running.stop()
