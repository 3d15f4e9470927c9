"""Which clients may connect, by certificate and by token, while the files change under a running server."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from typer.testing import CliRunner

from device_client.cli import app as device_app
from device_client.link import Link, Target
from edge_server import access, certificates, credentials
from edge_server.cli import app
from edge_server.credentials import Credentials
from edge_server.server import RunningServer
from edge_server.settings import ServerSettings
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import ANSWERED
from tofc.errors import CallError, TlsError, TokenError, UnavailableError, UnsupportedError
from tofc.rpc.channel import bind, make_server
from tofc.rpc.client_security import load_client_security
from tofc.rpc.security import ClientSecurity

KITCHEN, GARDEN = "kitchen-0123456789abcdef", "garden-0123456789abcdef"
IDS = ("fake-model", "fake-codec")


@pytest.fixture(autouse=True)
def fast_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "CHECK_S", 0.02)


def written(folder: Path, *devices: str, **settings: Any) -> Credentials:
    credentials.write(folder, ["localhost"], **settings)
    for device in devices:
        credentials.write(folder, [], device=device)
    return Credentials.below(folder)


def secret(path: Path, text: str) -> Path:
    """Replace a file atomically, as an editor does."""
    part = path.with_name("part")
    part.touch(mode=0o600)
    part.write_text(text)
    return part.replace(path)


def guarded(files: Credentials, **settings: Any) -> dict[str, Any]:
    """Return settings of a server that uses all files of its folder."""
    tls = {"tls_cert": files.certificate, "tls_key": files.key, "tls_client_ca": files.clients}
    return {**tls, "token_file": files.token, **settings}


def of_device(folder: Path, *without: str, **other: Any) -> ClientSecurity:
    given = {"token_file": "token", "tls_ca": "ca.pem", "tls_cert": "cert.pem", "tls_key": "key.pem"}
    files = {option: folder / name for option, name in given.items() if option not in without}
    return load_client_security(**{**files, **other})


async def refusal(server: RunningServer, security: ClientSecurity) -> CallError | None:
    """Return why a device is refused; None if it is not."""
    try:
        link = await Link.open(Target(address=f"localhost:{server.port}", security=security), *IDS)
    except CallError as error:
        return error
    await link.close()
    return None


def written_ago(monkeypatch: pytest.MonkeyPatch, folder: Path, age: timedelta, **settings: Any) -> Credentials:
    """Write credentials as they were written that long ago."""
    now = certificates._now() - age
    with monkeypatch.context() as then:
        then.setattr(certificates, "_now", lambda: now)
        return written(folder, **settings)


# client certificates


async def test_a_server_that_requires_certificates_refuses_strangers(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, other = written(tmp_path / "ours", "kitchen"), written(tmp_path / "theirs", "kitchen")
    server = await serve(**guarded(files))
    ours, theirs = files.devices / "kitchen", other.devices / "kitchen"
    stranger = {"tls_cert": theirs / "cert.pem", "tls_key": theirs / "key.pem"}
    with caplog.at_level(logging.INFO):
        assert await refusal(server, of_device(ours)) is None
        for security, message in (
            (of_device(ours, "tls_cert", "tls_key"), "requires a client certificate (--tls-cert and --tls-key"),
            (of_device(ours, **stranger), "does not accept this client certificate (--tls-cert"),
        ):
            error = await refusal(server, security)
            assert type(error) is UnavailableError and message in str(error)
    assert len([one for one in caplog.messages if "ended after" in one]) == 1, "the refused clients had no stream"
    assert any("(kitchen, ipv4:" in one for one in caplog.messages)


async def test_a_token_is_needed_beside_a_certificate(serve: Serve, tmp_path: Path) -> None:
    files = written(tmp_path, "kitchen")
    server = await serve(host="0.0.0.0", **guarded(files))
    assert isinstance(await refusal(server, of_device(files.devices / "kitchen", "token_file")), TokenError)


async def test_a_certificate_names_a_device_without_a_token(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = written(tmp_path, "kitchen")
    with caplog.at_level(logging.INFO):
        server = await serve(**guarded(files, token_file=None))
        assert await refusal(server, of_device(files.devices / "kitchen", "token_file")) is None
        await server.stop()
    assert "(kitchen, ipv4:" in caplog.text


async def test_a_devices_certificate_is_not_a_servers(serve: Serve, tmp_path: Path) -> None:
    files = written(tmp_path, "localhost")
    folder = files.devices / "localhost"
    server = await serve(tls_cert=folder / "cert.pem", tls_key=folder / "key.pem")
    error = await refusal(server, ClientSecurity(ca=files.ca.read_bytes()))
    assert isinstance(error, TlsError) and "CERTIFICATE_VERIFY_FAILED" in str(error)


def test_half_a_configuration_is_refused(tmp_path: Path) -> None:
    files, other = written(tmp_path / "ours", "kitchen"), written(tmp_path / "theirs", "kitchen")
    device, stranger = files.devices / "kitchen", other.devices / "kitchen"
    pair = ["--tls-cert", str(files.certificate), "--tls-key", str(files.key)]
    for arguments, message in (
        (["--tls-cert", str(files.certificate)], "TLS is half configured: the key is missing"),
        (["--tls-client-ca", str(files.clients)], "--tls-client-ca) need TLS"),
        ([*pair, "--tls-client-ca", str(files.key)], "--tls-client-ca " + str(files.key) + " holds no certificate"),
        ([*pair[:3], str(other.key)], f"{other.key} is not the key of {files.certificate}"),
        ([*pair[:3], str(files.certificate)], f"{files.certificate} holds no key in PEM"),
        ([*pair[2:], "--tls-cert", str(files.key)], f"{files.key} holds no certificate in PEM"),
    ):
        found = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
        assert (found.exit_code, found.output.count("\n")) == (2, 1) and message in found.output, found.output
    trust = ["--tls-ca", str(device / "ca.pem")]
    for arguments, message in (
        ([*trust, "--tls-cert", str(device / "cert.pem")], "client certificate is half configured: the key is missing"),
        ([*trust, "--tls-key", str(device / "key.pem")], "client certificate is half configured: the certificate is"),
        (["--tls-cert", str(device / "cert.pem"), "--tls-key", str(device / "key.pem")], "give --tls-ca FILE.pem"),
        (
            [*trust, "--tls-cert", str(device / "cert.pem"), "--tls-key", str(stranger / "key.pem")],
            "is not the key of",
        ),
    ):
        found = CliRunner().invoke(device_app, ["ask", __file__, "what?", *arguments])
        assert (found.exit_code, found.output.count("\n")) == (2, 1) and message in found.output, found.output


# tokens


async def test_a_revoked_device_loses_its_session_and_others_keep_theirs(
    serve: Serve, connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = secret(tmp_path / "tokens", f"{KITCHEN} kitchen\n\n{GARDEN} garden\n")
    with caplog.at_level(logging.INFO):
        server = await serve(token_file=tokens)
        kitchen, garden = (
            connect(server, metadata=ClientSecurity(token=token).metadata) for token in (KITCHEN, GARDEN)
        )
        await kitchen.hello()
        await garden.hello()
        secret(tokens, f"{GARDEN} garden\n")
        assert isinstance(await refusal(server, ClientSecurity(token=KITCHEN)), TokenError)
        message = await kitchen.failed(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")
        assert "was revoked; ask whoever runs the server" in message
        assert await refusal(server, ClientSecurity(token=GARDEN)) is None
        await garden.picture(1, "still")
        secret(tokens, f"{GARDEN} garden\n{KITCHEN}\n")
        assert await refusal(server, ClientSecurity(token=KITCHEN)) is None
    assert "(kitchen, ipv4:" in caplog.text and "(garden, ipv4:" in caplog.text
    assert KITCHEN not in caplog.text and GARDEN not in caplog.text


@pytest.mark.parametrize("how", ["gone", "empty", "short", "twice", "name", "for everybody"])
async def test_a_broken_token_file_leaves_the_last_good_one(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    tokens = secret(tmp_path / "tokens", f"{KITCHEN}\n")
    server = await serve(token_file=tokens)
    texts = {"empty": "", "short": "x", "twice": f"{GARDEN} a\n{GARDEN} b", "name": f"{GARDEN} a b"}
    with caplog.at_level(logging.INFO):
        if how == "gone":
            tokens.unlink()
        else:
            secret(tokens, texts.get(how, f"{GARDEN}\n"))
        if how == "for everybody":
            tokens.chmod(0o644)
        for _ in range(3):
            assert await refusal(server, ClientSecurity(token=KITCHEN)) is None
            assert isinstance(await refusal(server, ClientSecurity(token=GARDEN)), TokenError)
        assert caplog.text.count("what was read before stays in use") == 1 and str(tokens) in caplog.text
        secret(tokens, f"{GARDEN}\n")
        assert await refusal(server, ClientSecurity(token=GARDEN)) is None
        assert isinstance(await refusal(server, ClientSecurity(token=KITCHEN)), TokenError)
    assert KITCHEN not in caplog.text and GARDEN not in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="files have no modes there")
def test_secrets_that_everybody_may_read_are_refused(tmp_path: Path) -> None:
    files = written(tmp_path, "kitchen")
    device = files.devices / "kitchen"
    server = ["--tls-cert", str(files.certificate), "--tls-key", str(files.key), "--token-file", str(files.token)]
    shown = ["--tls-cert", str(device / "cert.pem"), "--tls-key", str(device / "key.pem")]
    client = ["--tls-ca", str(device / "ca.pem"), *shown, "--token-file", str(device / "token")]
    for program, arguments, path in (
        (app, ["serve", "--port", "0", *server], files.key),
        (app, ["serve", "--port", "0", *server], files.token),
        (app, ["info", "127.0.0.1:1", *client], device / "token"),
        (device_app, ["ask", __file__, "what?", *client], device / "key.pem"),
    ):
        path.chmod(0o604)
        found = CliRunner().invoke(program, arguments)
        assert found.exit_code == 2 and f"run: chmod 600 {path}" in found.output, found.output
        path.chmod(0o640)  # a group may, as that of a service
        load_client_security(token_file=device / "token", tls_ca=files.ca)
        path.chmod(0o600)


def test_a_token_may_come_through_a_pipe(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.write(writes, f"{KITCHEN}\n".encode())
    os.close(writes)
    assert load_client_security(token_file=Path(f"/dev/fd/{reads}")).token == KITCHEN
    os.close(reads)


# renewal


async def test_a_renewed_certificate_is_shown_at_the_next_handshake(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, other = written(tmp_path / "ours"), written(tmp_path / "theirs")
    served = {"tls_cert": files.certificate, "tls_key": files.key}
    server = await serve(**served)
    ours, theirs = (ClientSecurity(ca=one.ca.read_bytes()) for one in (files, other))
    assert await refusal(server, ours) is None
    with caplog.at_level(logging.INFO):
        secret(files.certificate, other.certificate.read_text())  # its key is not there yet
        assert await refusal(server, ours) is None and isinstance(await refusal(server, theirs), TlsError)
        assert caplog.text.count(f"{files.key} is not the key of {files.certificate}") == 1
        secret(files.key, other.key.read_text())
        assert await refusal(server, theirs) is None and isinstance(await refusal(server, ours), TlsError)


async def test_a_port_that_is_bound_later_uses_the_current_certificate(tmp_path: Path) -> None:
    files, other = written(tmp_path / "ours"), written(tmp_path / "theirs")
    settings = ServerSettings(model=tmp_path, tls_cert=files.certificate, tls_key=files.key)
    security = access.Access(settings).security
    secret(files.certificate, other.certificate.read_text())
    secret(files.key, other.key.read_text())
    server = make_server()
    port = bind(server, "127.0.0.1", 0, security)
    await server.start()
    target = Target(address=f"localhost:{port}", security=ClientSecurity(ca=other.ca.read_bytes()))
    with pytest.raises(UnsupportedError):  # through TLS, to no service
        await Link.open(target, *IDS)
    await server.stop(0)


async def test_a_renewal_accepts_old_and_new_credentials_until_it_is_finished(serve: Serve, tmp_path: Path) -> None:
    files = written(tmp_path / "all", "kitchen")
    for name in ("client", "devices"):
        os.rename(tmp_path / "all" / name, tmp_path / name)  # handed over
    server = await serve(**guarded(files))
    old = of_device(tmp_path / "devices" / "kitchen")
    old_shared = of_device(tmp_path / "client", tls_cert=files.certificate, tls_key=files.key)
    assert [await refusal(server, one) for one in (old, old_shared)] == [None, None]

    credentials.write(tmp_path / "all", [], renew=True)
    new = of_device(files.devices / "kitchen")
    new_shared = of_device(files.ca.parent, tls_cert=files.certificate, tls_key=files.key)
    assert len({one.token for one in (old, old_shared, new, new_shared)}) == 4
    credentials.write(tmp_path / "all", ["localhost"])  # as a container does at each start
    assert [await refusal(server, one) for one in (old, old_shared, new, new_shared)] == [None] * 4

    credentials.write(tmp_path / "all", [], finish=True)
    new_shared = of_device(files.ca.parent, tls_cert=files.certificate, tls_key=files.key)
    assert [await refusal(server, one) for one in (new, new_shared)] == [None, None]
    assert isinstance(await refusal(server, old), TlsError)
    with_new_authority = of_device(tmp_path / "devices" / "kitchen", tls_ca=files.ca)
    assert "does not accept this client certificate" in str(await refusal(server, with_new_authority))
    with_new_certificate = of_device(files.devices / "kitchen", token_file=tmp_path / "devices" / "kitchen" / "token")
    assert isinstance(await refusal(server, with_new_certificate), TokenError)
    assert not credentials.write(tmp_path / "all", ["localhost"]).written


# dates


async def test_both_sides_report_an_expired_certificate(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "DAY_S", 0.02)
    files = written_ago(monkeypatch, tmp_path, timedelta(days=400))
    ended = x509.load_pem_x509_certificate(files.certificate.read_bytes()).not_valid_after_utc
    server = await serve(tls_cert=files.certificate, tls_key=files.key)
    async with asyncio.timeout(ANSWERED):
        while caplog.text.count("edge-server credentials") < 2:  # each day
            await asyncio.sleep(0)
    assert f"the certificate in {files.certificate} expired on {ended:%Y-%m-%d}; renew it" in caplog.text
    security = ClientSecurity(ca=files.ca.read_bytes())
    error = await refusal(server, security)
    assert isinstance(error, TlsError)
    assert f"the certificate of localhost:{server.port} expired on {ended:%Y-%m-%d} (this machine's clock" in str(error)
    assert "can renew it with `edge-server credentials`" in str(error)
    credentials.write(tmp_path, [])
    assert await refusal(server, security) is None


async def test_a_certificate_that_is_not_valid_yet_and_an_authority_that_expired(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = written_ago(monkeypatch, tmp_path / "early", -timedelta(days=10))
    server = await serve(tls_cert=early.certificate, tls_key=early.key)
    error = await refusal(server, ClientSecurity(ca=early.ca.read_bytes()))
    assert isinstance(error, TlsError) and "is not valid yet; this machine's clock says" in str(error)
    late = written_ago(monkeypatch, tmp_path / "late", timedelta(days=certificates.AUTHORITY_DAYS + 1))
    server = await serve(tls_cert=late.certificate, tls_key=late.key)
    error = await refusal(server, ClientSecurity(ca=late.ca.read_bytes()))
    assert isinstance(error, TlsError) and "the authority that --tls-ca names expired on " in str(error)


def test_a_device_warns_of_the_expiry_of_its_own_certificate(tmp_path: Path) -> None:
    files = written(tmp_path, "kitchen")
    folder = files.devices / "kitchen"
    authority = certificates.Authority.read(files.authority.read_bytes())
    key = certificates.read_key((folder / "key.pem").read_bytes())
    warnings: list[str] = []
    for days in (20, 3):
        certificate = authority.sign_device(key.public_key(), "kitchen", days)
        (folder / "cert.pem").write_bytes(certificates.pem_of(certificate))
        of_device(folder, warn=warnings.append)
    assert len(warnings) == 1
    assert f"{folder / 'cert.pem'} is valid until" in warnings[0] and "2 days from now" in warnings[0]
    credentials.write(tmp_path, [], device="kitchen")
    of_device(folder, warn=warnings.append)
    assert len(warnings) == 1, "a certificate that expires soon is renewed"


async def test_info_says_until_when_the_certificate_is_valid(serve: Serve, tmp_path: Path) -> None:
    files = written(tmp_path, "kitchen")
    server = await serve(**guarded(files))
    end = x509.load_pem_x509_certificate(files.certificate.read_bytes()).not_valid_after_utc
    shown = ["--tls-cert", str(files.certificate), "--tls-key", str(files.key), "--token-file", str(files.token)]
    command = [sys.executable, "-m", "edge_server", "info", f"localhost:{server.port}", "--tls-ca", str(files.ca)]
    found = await asyncio.to_thread(subprocess.run, [*command, *shown], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith(f"certificate: valid until {end:%Y-%m-%d}\n")
