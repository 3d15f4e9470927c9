"""A server's life: health, reflection, TLS and tokens, signals, the command line."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer.main
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from typer.testing import CliRunner

import edge_server
from edge_server import credentials
from edge_server.backend import Backend
from edge_server.cli import app
from edge_server.fake import fake_backend
from edge_server.server import SERVICE, start
from edge_server.settings import ServerSettings, SessionLimits
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import ANSWERED
from tofc.codec.fake import fake_weights
from tofc.errors import SecurityError, TokenError, UnavailableError
from tofc.install import install
from tofc.model.config import SplitConfig
from tofc.rpc.channel import dial
from tofc.rpc.errors import REASON_METADATA, from_call
from tofc.rpc.security import ClientSecurity, read_token
from tofc.v1 import tofc_pb2 as pb
from tofc.v1 import tofc_pb2_grpc
from tofc_lab.checkpoint import fake as lab_fake

ADDRESSES = ((socket.AF_INET, "127.0.0.2"), (socket.AF_INET, "127.0.0.1"))
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def health(channel: grpc.aio.Channel, service: str) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=ANSWERED)).status


async def info(channel: grpc.aio.Channel, security: ClientSecurity = ClientSecurity()) -> Any:  # noqa: B008
    stub: Any = tofc_pb2_grpc.TofcServiceStub(channel)
    try:
        return await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=ANSWERED, metadata=security.metadata)
    except grpc.aio.AioRpcError as error:
        raise from_call(error) from error


async def test_server_info_and_reflection(serve: Serve) -> None:
    server = await serve(limits=SessionLimits(new_tokens=7, views_per_picture=5))
    async with dial(server.address) as channel:
        found = await info(channel)
        assert (found.model_id, found.codec_id, found.engine) == ("fake-model", "fake-codec", "fake")
        assert (found.limits.new_tokens, found.limits.views_per_picture) == (7, 5)
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {one.name for one in (await call.read()).list_services_response.service}
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto
        await call.done_writing()
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_it_is_alive_while_loading_and_ready_after(tmp_path: Path, free_port: int) -> None:
    loading, loaded = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def load(settings: ServerSettings) -> Backend:
        loop.call_soon_threadsafe(loading.set)
        assert loaded.wait(ANSWERED)
        return fake_backend()

    starting = asyncio.create_task(start(ServerSettings(model=tmp_path, port=free_port, grace_s=0.0), load))
    await asyncio.wait_for(loading.wait(), ANSWERED)
    async with dial(f"127.0.0.1:{free_port}") as channel:
        assert await health(channel, "") == SERVING
        assert await health(channel, SERVICE) == NOT_SERVING
        call: Any = tofc_pb2_grpc.TofcServiceStub(channel).Session()
        assert (await call.read()).error.reason == "LOADING"
        loaded.set()
        server = await starting
        assert await health(channel, SERVICE) == SERVING
        await info(channel)
        with pytest.raises(UnavailableError, match=r"cannot listen on 127\.0\.0\.1"):
            await start(ServerSettings(model=tmp_path, port=server.port), lambda _: fake_backend())
        await server.stop()


async def test_a_model_that_does_not_load_stops_the_server(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        await start(ServerSettings(model=tmp_path, port=0, grace_s=0.0))


async def test_beyond_this_machine_tls_and_a_token_are_needed(tmp_path: Path) -> None:
    written = credentials.write(tmp_path, ["127.0.0.1"])
    for settings in (
        {},
        {"token_file": written.token},
        {"tls_cert": written.certificate, "tls_key": written.key},
    ):
        with pytest.raises(SecurityError, match=r"listening on '0\.0\.0\.0' needs TLS and a token"):
            await start(ServerSettings(model=tmp_path, host="0.0.0.0", port=0, **settings), lambda _: fake_backend())
    with pytest.raises(SecurityError, match="the key is missing"):
        await start(ServerSettings(model=tmp_path, port=0, tls_cert=written.certificate), lambda _: fake_backend())


async def test_tls_and_token(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    written = credentials.write(tmp_path, ["127.0.0.1", "localhost"])
    server = await serve(host="0.0.0.0", tls_cert=written.certificate, tls_key=written.key, token_file=written.token)
    address = f"127.0.0.1:{server.port}"
    known = ClientSecurity(ca=written.ca.read_bytes(), token=read_token(written.client_token))
    async with dial(address, known) as channel:
        assert (await info(channel, known)).model_id == "fake-model"
        call: Any = tofc_pb2_grpc.TofcServiceStub(channel).Session(metadata=known.metadata)
        hello = pb.Hello(model_id="fake-model", codec_id="fake-codec")
        await call.write(pb.SessionRequest(hello=hello))
        assert (await call.read()).HasField("welcome")
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "bearer-bin"),)):
            call = tofc_pb2_grpc.TofcServiceStub(channel).Session(metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
            assert isinstance(from_call(refused.value), TokenError)
        with pytest.raises(TokenError):
            await info(channel)
        assert await health(channel, SERVICE) == SERVING  # probes carry no token
        watch: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        with pytest.raises(grpc.aio.AioRpcError) as refused:  # a stream that stays open is not a health probe
            await watch.read()
        assert isinstance(from_call(refused.value), TokenError)
    async with dial(address) as plain:  # no TLS
        with pytest.raises(UnavailableError):
            await info(plain)


async def test_certificates_and_tokens_as_other_systems_write_them(serve: Serve, tmp_path: Path) -> None:
    """With a byte order mark at the start of every file of a concatenation, and with carriage returns."""
    written = credentials.write(tmp_path / "made", ["127.0.0.1"])
    stranger = credentials.write(tmp_path / "other", ["127.0.0.1"])

    def foreign(*files: Path) -> Path:
        texts = [b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n") for file in files]
        (tmp_path / files[-1].name).write_bytes(b"".join(texts))
        (tmp_path / files[-1].name).chmod(0o600)
        return tmp_path / files[-1].name

    certificate, key, token = (foreign(file) for file in (written.certificate, written.key, written.token))
    server = await serve(host="0.0.0.0", tls_cert=certificate, tls_key=key, token_file=token)
    authority = foreign(stranger.authority, written.authority)
    arguments = ["info", f"127.0.0.1:{server.port}", "--tls-ca", str(authority), "--token-file", str(token)]
    found = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert found.exit_code == 0 and "model_id: fake-model" in found.output
    wide = tmp_path / "wide.pem"
    wide.write_text(written.authority.read_text(), encoding="utf-16")
    found = await asyncio.to_thread(CliRunner().invoke, app, [*arguments[:3], str(wide)])
    assert (found.exit_code, found.output.count("\n")) == (2, 1) and "wide.pem is UTF-16 text" in found.output


async def test_info_is_quiet_when_nobody_reads_it(serve: Serve) -> None:
    server = await serve()
    reads, writes = os.pipe()
    os.close(reads)
    for arguments, stream in ((["info", server.address], "stdout"), (["info", "127.0.0.1:x"], "stderr")):
        streams: dict[str, Any] = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, stream: writes}
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "edge_server", *arguments, **streams)
        output = await process.communicate()
        assert (process.returncode, [one for one in output if one]) == (141, [])
    os.close(writes)


async def test_a_token_without_tls_on_this_machine(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    server = await serve(token_file=token)
    security = ClientSecurity(token="0123456789abcdef")
    client = connect(server, metadata=security.metadata)
    await client.hello()
    stranger = connect(server)
    assert await stranger.receive_status() == grpc.StatusCode.UNAUTHENTICATED


def test_wrong_use_of_the_commands_is_explained(tmp_path: Path) -> None:
    runner = CliRunner()
    for arguments, sentence in (
        (["serve", "--model", str(tmp_path), "--port", "0"], "config.json"),
        (["serve", "--host", "0.0.0.0"], "needs TLS and a token"),
        (["serve", "--log-level", "loud"], "got 'loud'"),
        (["serve", "--port", "0", "--device", "nonsense"], "--device must be one that torch finds here (cpu"),
        (["serve", "--port", "0", "--device", "cuda:99"], "got 'cuda:99'"),
        (
            ["serve", "--port", "0", "--dtype", "float8"],
            "--dtype must be one of auto, float32, bfloat16, float16, got 'float8'",
        ),
        (["serve", "--token-file", str(tmp_path / "none")], f"--token-file {tmp_path / 'none'} does not exist"),
        (["info", "example.org:1"], "dialling 'example.org' needs TLS and a token"),
        (["info", "::1:x"], "the address must be HOST:PORT"),
        (["serve", "--model", str(tmp_path / "none")], "--model must be the folder of a checkpoint"),
        (["credentials", "--out", str(tmp_path), "--host", "https://a.org:1"], "got 'https://a.org:1'"),
        (["credentials", "--out", str(tmp_path), "--host", ""], "--host must be what clients write"),
    ):
        found = runner.invoke(app, arguments)
        assert found.exit_code == 2, (arguments, found.output)
        assert sentence in found.output
        assert found.output.startswith("edge-server: ")
    assert runner.invoke(app, ["serve", "--port", "70000"]).exit_code == 2
    found = runner.invoke(app, ["info", "127.0.0.1:1"])
    assert found.exit_code == 1
    assert found.output.startswith("edge-server: no edge server at 127.0.0.1:1 (Connection refused); start one with")


async def test_a_name_is_free_on_all_its_addresses_or_taken(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int((await serve()).address.rpartition(":")[2])
    both = [(family, socket.SOCK_STREAM, 0, "", (host, port)) for family, host in ADDRESSES]
    monkeypatch.setattr("tofc.rpc.channel.socket.getaddrinfo", lambda *_, **__: both)
    with pytest.raises(UnavailableError, match="cannot listen on localhost"):
        await start(ServerSettings(model=Path("unused"), host="localhost", port=port), lambda _: fake_backend())


@pytest.mark.parametrize(
    ("module", "missing", "arguments"),
    [
        ("server", "grpc_health.v1", ["serve"]),
        ("credentials", "cryptography", ["credentials", "--out", "none", "--host", "server"]),
    ],
)
def test_an_installation_for_devices_names_the_missing_extra(
    module: str, missing: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"edge_server.{module}")
    monkeypatch.delattr(edge_server, module)
    monkeypatch.setitem(sys.modules, missing, None)
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 1
    assert missing in found.output and found.output.endswith(f"; {install('server')}\n")
    assert found.output.count("\n") == 1


def test_every_option_is_an_environment_variable() -> None:
    command: Any = typer.main.get_command(app)
    for name, one in command.commands.items():
        for parameter in one.params:
            if parameter.name in ("replace", "renew", "finish"):
                assert not parameter.envvar, "left in an environment it would lock devices out, start after start"
            elif parameter.name != "help":
                variables = parameter.envvar if isinstance(parameter.envvar, list) else [parameter.envvar]
                assert f"TOFC_SERVER_{parameter.name.upper()}" in variables, (name, parameter.name)


async def test_the_command_leaves_at_once_when_asked_while_loading() -> None:
    program = (
        "import time; from edge_server import backend, cli; backend.load = lambda settings: time.sleep(600); "
        "cli.app(['serve', '--port', '0'])"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE)
    try:
        assert process.stderr is not None
        while b"loading" not in (line := await process.stderr.readline()):
            assert line, "it ended before it loaded"
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), ANSWERED) == 0
        assert b"asked to stop" in await process.stderr.read()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_command_serves_until_it_is_asked_to_stop(tmp_path: Path) -> None:
    model = tmp_path / "model"
    lab_fake.write(model)
    fake_weights(D=128, H=32).save(model)
    command = [sys.executable, "-m", "edge_server", "serve"]
    environment = {**os.environ, "TOFC_SERVER_MODEL": str(model), "TOFC_SERVER_PORT": "0"}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line.startswith("listening on 127.0.0.1:"), (line, (await process.communicate())[1].decode())
        found = await asyncio.to_thread(CliRunner().invoke, app, ["info", line.split()[-1]])
        assert "engine: transformers" in found.output and "limits.packet_bytes: 65536" in found.output
        most = SplitConfig.read(model / "config.json").rule.max_views
        assert f"limits.views_per_picture: {most}\n" in found.output
        async with dial(line.split()[-1]) as channel:
            call: Any = tofc_pb2_grpc.TofcServiceStub(channel).Session()
            await call.write(pb.SessionRequest(hello=pb.Hello(model_id="x", client_version="private words")))
            assert (await call.read()).error.reason == "MODEL_MISMATCH"
            stub: Any = tofc_pb2_grpc.TofcServiceStub(channel)
            waiting = stub.Session()
            await waiting.wait_for_connection()
            # A call that gRPC has not handed over yet is cancelled by it; one before another on its connection was.
            await stub.GetServerInfo(pb.GetServerInfoRequest())
            process.send_signal(signal.SIGTERM)
            assert await waiting.code() == grpc.StatusCode.UNAVAILABLE
            assert dict(await waiting.trailing_metadata())[REASON_METADATA] == "STOPPING"
        _, log = await process.communicate()
        assert process.returncode == 0, log.decode()
        assert "MODEL_MISMATCH" in log.decode() and "stopped" in log.decode()
        assert "private words" not in log.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
