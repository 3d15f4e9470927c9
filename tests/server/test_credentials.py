"""Credentials that a server writes are accepted by gRPC itself, only where and as long as they should be."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from edge_server import certificates, credentials
from edge_server.credentials import Credentials
from tofc.errors import CredentialsError
from tofc.rpc.channel import bind, dial, make_server
from tofc.rpc.security import ClientSecurity, ServerSecurity, read_token
from tofc.rpc.tokens import read_tokens


async def probe(folder: Path, ca: Path) -> int:
    """Start a server with the credentials of `folder`; return its health as a client sees it that trusts `ca`."""
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
    assert await probe(tmp_path, written.ca) == health_pb2.HealthCheckResponse.SERVING


async def test_a_client_that_trusts_another_authority_does_not(tmp_path: Path) -> None:
    credentials.write(tmp_path / "ours", ["127.0.0.1"])
    other = credentials.write(tmp_path / "theirs", ["127.0.0.1"])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await probe(tmp_path / "ours", other.ca)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


SERVING = health_pb2.HealthCheckResponse.SERVING


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hosts(written: Credentials) -> set[str]:
    certificate = x509.load_pem_x509_certificate(written.certificate.read_bytes())
    return {str(name.value) for name in certificates.hosts_of(certificate)}


def pass_time(monkeypatch: pytest.MonkeyPatch, time: timedelta) -> None:
    now = certificates._now() + time
    monkeypatch.setattr(certificates, "_now", lambda: now)


def test_each_side_has_only_what_it_needs_and_others_cannot_read_it(tmp_path: Path) -> None:
    written = credentials.write(tmp_path, ["server"])
    assert set(map(str, contents(tmp_path))) == {
        "server/cert.pem",
        "server/key.pem",
        "server/token",
        "client/ca.pem",
        "client/token",
        "authority/authority.pem",
    }
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.rglob("*") if path.is_file())
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in tmp_path.iterdir())
    assert read_token(written.token) == read_token(written.client_token)


@pytest.mark.parametrize("asked", [["127.0.0.1"], ["SERVER", "127.0.0.1"]])
def test_good_files_are_kept(tmp_path: Path, asked: list[str]) -> None:
    credentials.write(tmp_path, ["server", "127.0.0.1"])
    before = contents(tmp_path)
    again = credentials.write(tmp_path, asked, days=3650)
    assert contents(tmp_path) == before
    assert not again.written and again.summary.startswith(
        "kept: no file needs to change\ncertificate for server, 127.0.0.1 until "
    )


async def test_another_host_is_added_and_devices_can_still_connect(tmp_path: Path) -> None:
    first = credentials.write(tmp_path, ["server", "127.0.0.1"])
    (tmp_path / "device.pem").write_bytes(first.ca.read_bytes())
    before = contents(tmp_path)
    more = credentials.write(tmp_path, ["edge.example.org"])
    changed = {path for path, content in contents(tmp_path).items() if content != before[path]}
    assert changed == {Path("server/cert.pem")} and more.written == (more.certificate,)
    assert hosts(more) == {"server", "127.0.0.1", "edge.example.org"}
    assert "edge.example.org added" in more.summary and "restart" in more.summary
    assert await probe(tmp_path, tmp_path / "device.pem") == SERVING


async def test_a_certificate_that_expires_soon_is_renewed_and_devices_can_still_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials.write(tmp_path, ["server", "127.0.0.1"], days=30)
    before = contents(tmp_path)
    with monkeypatch.context() as later:
        pass_time(later, timedelta(days=15))
        assert not credentials.write(tmp_path, ["server"]).written
        pass_time(later, timedelta(days=2))
        renewed = credentials.write(tmp_path, ["server"], days=60)
        assert renewed.written == (renewed.certificate,)
        certificate = x509.load_pem_x509_certificate(renewed.certificate.read_bytes())
        assert timedelta(days=59) < certificates.time_left(certificate) < timedelta(days=60)
        assert not credentials.write(tmp_path, ["server"]).written
    assert hosts(renewed) == {"server", "127.0.0.1"}
    assert {path for path in before if before[path] != contents(tmp_path)[path]} == {Path("server/cert.pem")}
    # Not with gRPC: the certificate is not valid yet by the real clock.
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(renewed.ca.read_bytes()))


def test_no_certificate_outlives_its_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = credentials.write(tmp_path, ["server"], days=30)
    ends = x509.load_pem_x509_certificate(written.ca.read_bytes()).not_valid_after_utc
    years = timedelta(days=certificates.AUTHORITY_DAYS)
    pass_time(monkeypatch, years - timedelta(days=20))
    credentials.write(tmp_path, ["server"], days=365)
    assert x509.load_pem_x509_certificate(written.certificate.read_bytes()).not_valid_after_utc == ends
    pass_time(monkeypatch, timedelta(days=10))
    before = contents(tmp_path)
    kept = credentials.write(tmp_path, ["server"])
    assert not kept.written and "will not be renewed" in kept.summary and "--replace" in kept.summary
    pass_time(monkeypatch, timedelta(days=10))
    with pytest.raises(CredentialsError, match="--replace"):
        credentials.write(tmp_path, ["server"])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["server/cert.pem", "server/key.pem", "server/token", "client/ca.pem", "client/token"])
def test_a_missing_file_is_written_from_the_others(tmp_path: Path, name: str) -> None:
    credentials.write(tmp_path, ["server"])
    before = contents(tmp_path)
    (tmp_path / name).unlink()
    written = credentials.write(tmp_path, ["server"])
    assert tmp_path / name in written.written
    kept = {"client/ca.pem", "client/token", "server/token", "authority/authority.pem"}
    assert all(contents(tmp_path)[Path(one)] == before[Path(one)] for one in kept)
    assert not credentials.write(tmp_path, ["server"]).written


def test_a_clients_folder_that_was_handed_over_is_written_again(tmp_path: Path) -> None:
    credentials.write(tmp_path, ["server"])
    (tmp_path / "client").rename(tmp_path / "gone")
    credentials.write(tmp_path, ["server"])
    assert contents(tmp_path / "client") == contents(tmp_path / "gone")


@pytest.mark.parametrize("calls", range(6))
def test_an_interrupted_first_call_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    really, left = credentials._write_secret, [calls]

    def interrupted(path: Path, content: bytes) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        really(path, content)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(credentials, "_write_secret", interrupted)
        credentials.write(tmp_path, ["server"])
    before = contents(tmp_path)
    assert len(before) == calls
    credentials.write(tmp_path, ["server"])
    assert len(contents(tmp_path)) == 6 and contents(tmp_path).items() >= before.items()
    assert not credentials.write(tmp_path, ["server"]).written


@pytest.mark.parametrize("step", ["renew", "finish"])
def test_an_interrupted_renewal_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Wherever it stops, another start of the server's container changes nothing that devices have."""

    def state(folder: Path) -> tuple[int, int, set[str], int, bool]:
        files = Credentials.below(folder)
        tokens = read_tokens(files.token)
        authorities = x509.load_pem_x509_certificates(files.ca.read_bytes())
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        ours = sum(certificates.signed_by(certificate, one) for one in authorities)
        return len(tokens), len(authorities), {one.name for one in tokens}, ours, files.successor.exists()

    really, calls = credentials._write_secret, 0

    def interrupted(path: Path, content: bytes) -> None:
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(path)
        really(path, content)

    while True:
        folder, done = tmp_path / str(calls), list[Path]()
        credentials.write(folder, ["server"])
        credentials.write(folder, [], device="kitchen")
        if step == "finish":
            credentials.write(folder, [], renew=True)
        trusted = Credentials.below(folder).ca.read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(credentials, "_write_secret", interrupted)
            try:
                credentials.write(folder, [], **{step: True})  # type: ignore[arg-type]
                break
            except KeyboardInterrupt:
                pass
        credentials.write(folder, ["server"])
        certificate = x509.load_pem_x509_certificate((folder / "server/cert.pem").read_bytes())
        authorities = x509.load_pem_x509_certificates(trusted)
        assert any(certificates.signed_by(certificate, one) for one in authorities), "devices can still connect"
        credentials.write(folder, [], **{step: True})  # type: ignore[arg-type]
        both = step == "renew"
        assert state(folder) == ((4, 2) if both else (2, 1)) + ({"", "kitchen"}, 1, both)
        calls += 1
    assert calls == len(done) >= 6


def test_a_device_is_revoked_by_removing_its_line_and_can_be_added_again(tmp_path: Path) -> None:
    credentials.write(tmp_path, ["server"])
    first = credentials.write(tmp_path, [], device="kitchen")
    assert not credentials.write(tmp_path, [], device="kitchen").written
    before = contents(tmp_path / "devices")
    shared, of_kitchen = read_tokens(first.token)
    first.token.write_text(f"{shared}\n")
    credentials.write(tmp_path, ["server"])
    credentials.write(tmp_path, [], renew=True)
    assert contents(tmp_path / "devices") == before, "a revoked device gets no new token"
    credentials.write(tmp_path, [], finish=True)
    credentials.write(tmp_path, [], device="kitchen")
    changed = {path.name for path, content in contents(tmp_path / "devices").items() if content != before[path]}
    assert changed == {"token", "key.pem", "cert.pem", "ca.pem"}
    assert of_kitchen.value not in first.token.read_text()


def test_the_shared_token_can_be_revoked_for_good(tmp_path: Path) -> None:
    first = credentials.write(tmp_path, ["server"])
    credentials.write(tmp_path, [], device="kitchen")
    first.token.write_text(f"{read_tokens(first.token)[1]}\n")
    assert not credentials.write(tmp_path, ["server"]).written
    credentials.write(tmp_path, [], renew=True)
    assert [token.name for token in read_tokens(first.token)] == ["kitchen", "kitchen"]


def test_a_lost_authority_can_be_replaced_by_a_renewal(tmp_path: Path) -> None:
    written = credentials.write(tmp_path, ["server"])
    written.authority.unlink()
    credentials.write(tmp_path, [], renew=True)
    assert len(x509.load_pem_x509_certificates(written.ca.read_bytes())) == 2
    credentials.write(tmp_path, ["another"], finish=True)
    assert hosts(written) == {"server", "another"} and not credentials.write(tmp_path, ["server"]).written


def damage(folder: Path, how: str) -> None:
    stranger = Credentials.below(folder.parent / "stranger")
    credentials.write(folder.parent / "stranger", ["server"])
    ours = Credentials.below(folder)
    name, _, kind = how.partition(" ")
    path: Path = getattr(ours, name)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "of a stranger":
        path.write_bytes(getattr(stranger, name).read_bytes())


DAMAGES = [
    *(f"{name} {kind}" for name in ("certificate", "key", "ca", "authority") for kind in ("cut", "of a stranger")),
    *("token empty", "token of a stranger", "client_token of a stranger"),
]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("asked", ["server", "other"])
async def test_damaged_files_are_named_and_kept_unless_replaced(tmp_path: Path, how: str, asked: str) -> None:
    folder = tmp_path / "ours"
    written = credentials.write(folder, ["server", "127.0.0.1"])
    damage(folder, how)
    before = contents(folder)
    with pytest.raises(CredentialsError) as refused:
        credentials.write(folder, [asked])
    assert str(getattr(written, how.partition(" ")[0])) in str(refused.value) and "--replace" in str(refused.value)
    assert contents(folder) == before
    replaced = credentials.write(folder, ["127.0.0.1"], replace=True)
    assert len(replaced.written) == 6 and "every device" in replaced.summary
    assert await probe(folder, replaced.ca) == SERVING


def test_replacing_changes_all_of_it(tmp_path: Path) -> None:
    assert "every device" not in credentials.write(tmp_path, ["server"], replace=True).summary  # there were none
    before = contents(tmp_path)
    credentials.write(tmp_path, ["other"], replace=True)
    assert all(content != before[path] for path, content in contents(tmp_path).items())


def test_without_the_authority_nothing_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As earlier versions wrote it, or after its owner has moved the key elsewhere.
    written = credentials.write(tmp_path, ["server"], days=30)
    written.authority.unlink()
    before = contents(tmp_path)
    assert credentials.write(tmp_path, ["server"]).summary.startswith("kept: ")
    with pytest.raises(CredentialsError, match=r"authority\.pem.* for other.* missing.*Nothing was changed.*--replace"):
        credentials.write(tmp_path, ["server", "other"])
    pass_time(monkeypatch, timedelta(days=20))
    assert "will not be renewed" in credentials.write(tmp_path, ["server"]).summary
    pass_time(monkeypatch, timedelta(days=20))
    with pytest.raises(CredentialsError, match="missing"):
        credentials.write(tmp_path, ["server"])
    assert contents(tmp_path) == before


def test_a_lost_token_that_devices_have_is_not_replaced_silently(tmp_path: Path) -> None:
    written = credentials.write(tmp_path, ["server"])
    written.token.unlink()
    written.client_token.unlink()
    with pytest.raises(CredentialsError, match=r"token.* missing"):
        credentials.write(tmp_path, ["server"])
    assert not written.token.exists()


def test_a_token_that_the_owner_wrote_is_used(tmp_path: Path) -> None:
    token = tmp_path / "server" / "token"
    token.parent.mkdir()
    token.write_text("chosen-by-somebody\n")
    assert read_token(credentials.write(tmp_path, ["server"]).client_token) == "chosen-by-somebody"


def test_two_calls_at_once_agree(tmp_path: Path) -> None:
    calls = [["a"], ["b"], ["c"], ["a", "d"]]
    failed: list[BaseException] = []

    def call(asked: list[str]) -> None:
        try:
            credentials.write(tmp_path, asked)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=[asked]) for asked in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = credentials.write(tmp_path, ["a", "b", "c", "d"])
    assert not failed and not last.written and hosts(last) == {"a", "b", "c", "d"}


def test_a_renewed_file_keeps_its_owner_and_mode(tmp_path: Path) -> None:
    written = credentials.write(tmp_path, ["server"])
    written.certificate.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(written.certificate, 12345, 12346)
    before = written.certificate.stat()
    credentials.write(tmp_path, ["other"])
    after = written.certificate.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        ([], {}),
        (["server"], {"days": 14}),
        (["bücher.example"], {}),
        (["https://edge.example.org"], {}),
        (["edge.example.org:50061"], {}),
        (["192.0.2.300"], {}),
        (["server"], {"device": "a b"}),
        (["server"], {"device": "../x"}),
        (["server"], {"renew": True, "finish": True}),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, asked: list[str], settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"--host|--days|--device|--renew"):
        credentials.write(tmp_path, asked, **settings)
    assert not contents(tmp_path)


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    def command(*options: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "edge_server", "credentials", "--out", str(tmp_path), *options]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    assert command("--host", "a").stdout.startswith("written: ")
    assert command("--host", "a").stdout.startswith("kept: no file needs to change\ncertificate for a until ")
    assert "b added" in command("--host", "b").stdout
    (tmp_path / "client" / "ca.pem").write_text("nothing")
    refused = command("--host", "a")
    assert refused.returncode == 2 and "Nothing was changed" in refused.stderr and not refused.stdout
    assert command("--host", "a", "--replace").stdout.startswith("replaced: every device needs the new client/")
