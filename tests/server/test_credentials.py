"""Credentials that a server writes are accepted by gRPC itself, and only where they should be."""

import stat
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from edge_server import credentials
from shared.rpc.channel import ClientSecurity, ServerSecurity, bind, dial, make_server, read_token


async def probe(folder: Path, ca: Path) -> int:
    """Asks a server with `folder`'s credentials for its health, trusting `ca`; the status it tells."""
    security = ServerSecurity(
        certificate=(folder / "server/cert.pem").read_bytes(),
        key=(folder / "server/key.pem").read_bytes(),
        token=read_token(folder / "server/token"),
    )
    server = make_server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = bind(server, "127.0.0.1", 0, security)
    await server.start()
    try:
        async with dial(f"127.0.0.1:{port}", ClientSecurity(ca=ca.read_bytes())) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
            return int(answer.status)
    finally:
        await server.stop(0)


async def test_a_client_that_trusts_the_authority_gets_through(tmp_path: Path) -> None:
    written = credentials.write(tmp_path, ["server", "127.0.0.1"])
    assert written.fresh
    assert await probe(tmp_path, written.authority) == health_pb2.HealthCheckResponse.SERVING


async def test_a_client_that_trusts_another_authority_does_not(tmp_path: Path) -> None:
    credentials.write(tmp_path / "ours", ["127.0.0.1"])
    other = credentials.write(tmp_path / "theirs", ["127.0.0.1"])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await probe(tmp_path / "ours", other.authority)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_each_side_has_only_what_it_needs_and_nobody_else_reads_it(tmp_path: Path) -> None:
    written = credentials.write(tmp_path, ["server"])
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"server/cert.pem", "server/key.pem", "server/token", "client/ca.pem", "client/token"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.rglob("*") if path.is_file())
    assert read_token(written.token) == read_token(written.client_token)


def test_what_is_good_is_kept(tmp_path: Path) -> None:
    first = credentials.write(tmp_path, ["server", "127.0.0.1"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = credentials.write(tmp_path, ["127.0.0.1"])
    assert first.fresh and not again.fresh
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("damage", ["host", "token", "key", "certificate", "authority"])
def test_what_is_not_good_is_written_anew(tmp_path: Path, damage: str) -> None:
    written = credentials.write(tmp_path, ["server"])
    hosts = ["server"]
    if damage == "host":
        hosts.append("other")
    elif damage == "token":
        written.client_token.unlink()
    elif damage == "key":
        stranger = credentials.write(tmp_path / "elsewhere", ["server"])
        written.key.write_bytes(stranger.key.read_bytes())
    elif damage == "certificate":
        written.certificate.write_bytes(written.certificate.read_bytes()[:100])
    elif damage == "authority":
        stranger = credentials.write(tmp_path / "elsewhere", ["server"])
        written.authority.write_bytes(stranger.authority.read_bytes())
    assert credentials.write(tmp_path, hosts).fresh
    assert not credentials.write(tmp_path, hosts).fresh


def test_what_ends_soon_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials.write(tmp_path, ["server"], days=30)
    monkeypatch.setattr(credentials, "RENEWAL_DAYS", 31)
    assert credentials.write(tmp_path, ["server"], days=60).fresh


@pytest.mark.parametrize(("hosts", "days"), [([], 365), (["server"], 14), (["bücher.example"], 365)])
def test_mistakes_are_told(tmp_path: Path, hosts: list[str], days: int) -> None:
    with pytest.raises(ValueError, match=r"host|days|A-label|IDNA"):
        credentials.write(tmp_path, hosts, days=days)
