"""The command `edge-server`: serve a model, or ask a server what it is.

Promises that every option is also an environment variable (TOFC_SERVER_…; what locks devices out of a server has to be
said each time) and that a mistake ends with a sentence and an exit code: 2 for wrong use, 1 for what a machine or a
server refuses. Leaves what options mean to `settings`.
"""

import asyncio
import logging
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import grpc
import typer

from edge_server.log import QueuedLog
from edge_server.settings import IMAGE_BYTES, IMAGE_PIXELS, MIB, ServerSettings, SessionLimits
from shared.command import Program
from shared.install import install
from shared.model.threads import MOST_THREADS
from shared.out_of_memory import out_of_memory
from shared.rpc.channel import CONNECT_S, ClientSecurity, dial
from shared.rpc.client_files import client_security
from shared.rpc.errors import DeadlineError, InternalError, TofcError, UnavailableError, UnsafeAddressError, from_call
from shared.rpc.peer_certificate import valid_until
from shared.rpc.tofc.v1 import tofc_pb2, tofc_pb2_grpc
from shared.rpc.unreachable import Dialled
from shared.sentence import sentence, shortened
from shared.terminal import note, one_line, say

if TYPE_CHECKING:
    from edge_server.server import RunningServer

app = Program(help="Serve a model to devices, or ask a server what it is.")

NANO = Path(__file__).resolve().parents[1] / "models" / "nano"
BASE = ServerSettings(model=NANO)
MOST_DAYS = 36_500
EXIT_CODES = "Exit codes: 0 fine; 1 a server or this machine refuses, or nobody answers; 2 wrong use."
WRONG_USE = (ValueError, OSError, UnsafeAddressError)


def _variable(name: str) -> str:
    return f"TOFC_SERVER_{name}"


@app.callback()
def _main() -> None:
    pass


@app.command(epilog=EXIT_CODES)
def serve(
    model: Annotated[
        Path, typer.Option(envvar=[_variable("MODEL"), "TOFC_MODEL"], help="Checkpoint: whole, or its server half.")
    ] = NANO,
    host: Annotated[
        str, typer.Option(envvar=_variable("HOST"), help="Beyond this machine: TLS and token.")
    ] = BASE.host,
    port: Annotated[int, typer.Option(envvar=_variable("PORT"), help="0: any free one.", min=0, max=65535)] = BASE.port,
    tls_cert: Annotated[Path | None, typer.Option(envvar=_variable("TLS_CERT"), help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar=_variable("TLS_KEY"), help="Its key, PEM.")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(envvar=_variable("TLS_CLIENT_CA"), help="Only clients with a certificate that it signed, PEM."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(envvar=_variable("TOKEN_FILE"), help="Tokens of clients, a line each: TOKEN, or TOKEN DEVICE."),
    ] = None,
    take_images: Annotated[
        bool,
        typer.Option(
            "--take-images",
            envvar=_variable("TAKE_IMAGES"),
            help="Let devices send image files too (--mode image); needs a whole checkpoint.",
        ),
    ] = False,
    device: Annotated[str, typer.Option(envvar=_variable("DEVICE"), help="cpu, cuda, cuda:1, …")] = BASE.device,
    dtype: Annotated[str, typer.Option(envvar=_variable("DTYPE"), help="float32, bfloat16 or float16.")] = BASE.dtype,
    max_new_tokens: Annotated[
        int, typer.Option(envvar=_variable("MAX_NEW_TOKENS"), help="The most an answer may have.", min=1)
    ] = BASE.limits.new_tokens,
    sessions: Annotated[int, typer.Option(envvar=_variable("SESSIONS"), help="Open at once.", min=1)] = BASE.sessions,
    questions: Annotated[
        int, typer.Option(envvar=_variable("QUESTIONS"), help="In flight in one session.", min=1)
    ] = BASE.limits.questions_in_flight,
    views: Annotated[
        int, typer.Option(envvar=_variable("VIEWS"), help="Of one picture. 0: what the model's rule makes.", min=0)
    ] = BASE.limits.views_per_picture,
    queue: Annotated[
        int, typer.Option(envvar=_variable("QUEUE"), help="Questions that may wait for the engine.", min=1)
    ] = BASE.engine_queue,
    parallel: Annotated[
        int, typer.Option(envvar=_variable("PARALLEL"), help="Questions that are answered in turns.", min=1)
    ] = BASE.engine_parallel,
    cache_mib: Annotated[
        int, typer.Option(envvar=_variable("CACHE_MIB"), help="Memory for pictures, MiB.", min=1)
    ] = BASE.cache_bytes // MIB,
    threads: Annotated[
        int, typer.Option(envvar=_variable("THREADS"), help="For decoding packets.", min=1)
    ] = BASE.threads,
    engine_threads: Annotated[
        int | None,
        typer.Option(
            envvar=_variable("ENGINE_THREADS"),
            help="Of the decoder, and of the tower that takes images, on a CPU.",
            show_default="OMP_NUM_THREADS, else one a core",
            min=1,
            max=MOST_THREADS,
        ),
    ] = BASE.engine_threads,
    picture_timeout: Annotated[
        float, typer.Option(envvar=_variable("PICTURE_TIMEOUT"), help="Seconds a question waits for views.")
    ] = BASE.picture_timeout,
    grace: Annotated[
        float, typer.Option(envvar=_variable("GRACE"), help="Seconds for questions under way when stopping.", min=0)
    ] = BASE.grace,
    log_level: Annotated[str, typer.Option(envvar=_variable("LOG_LEVEL"), help="debug, info, warning, …")] = "info",
) -> None:
    """Serves a model until SIGTERM or SIGINT."""
    try:
        if not model.is_dir():  # before seconds of imports
            raise ValueError(f"--model {model} is no folder; give a checkpoint's, whole or its server half")
        _log_to_stderr(log_level)
        settings = ServerSettings(
            model=model,
            host=host,
            port=port,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_client_ca=tls_client_ca,
            token_file=token_file,
            device=device,
            dtype=dtype,
            limits=SessionLimits(
                new_tokens=max_new_tokens,
                questions_in_flight=questions,
                views_per_picture=views,
                image_bytes=IMAGE_BYTES if take_images else 0,
                image_pixels=IMAGE_PIXELS if take_images else 0,
            ),
            sessions=sessions,
            engine_queue=queue,
            engine_parallel=parallel,
            cache_bytes=cache_mib * MIB,
            threads=threads,
            engine_threads=engine_threads,
            picture_timeout=picture_timeout,
            grace=grace,
        )
        from edge_server.server import run  # only here: what is wrong above is said before seconds of imports

        asyncio.run(run(settings, _announce))
    except BrokenPipeError:  # nobody reads any more: `Program` ends quietly
        raise
    except (TofcError, ValueError, OSError, ModuleNotFoundError) as error:  # Checkpoint-, CodecError are ValueErrors
        _give_up(error)
    except Exception as error:  # at loading, for instance; while sessions are served they hear of it
        if not out_of_memory(error):
            raise
        note(f"edge-server: {sentence(MemoryError(str(error)))}")
        raise typer.Exit(1) from None


@app.command(epilog=EXIT_CODES)
def info(
    address: Annotated[str, typer.Argument(help="HOST:PORT", envvar=_variable("ADDRESS"))] = "127.0.0.1:50061",
    tls: Annotated[bool, typer.Option(envvar=_variable("TLS"), help="Use TLS with the system's authorities.")] = False,
    tls_ca: Annotated[
        Path | None, typer.Option(envvar=_variable("TLS_CA"), help="The authority to trust, PEM; implies TLS.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar=_variable("TLS_CERT"), help="A client certificate, or the server's own.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar=_variable("TLS_KEY"), help="Its key, PEM.")] = None,
    token_file: Annotated[Path | None, typer.Option(envvar=_variable("TOKEN_FILE"), help="The server's token.")] = None,
) -> None:
    """Says what a server runs and allows."""
    try:
        security = client_security(
            token_file=token_file, tls=tls, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key, warn=_warn
        )
        found, end = asyncio.run(_ask(address, security))
    except (TofcError, ValueError, OSError) as error:
        _give_up(error)
    if end is not None:
        say(f"certificate: valid until {end:%Y-%m-%d}")
    for field in found.DESCRIPTOR.fields:
        if field.name != "limits":
            say(one_line(f"{field.name}: {shortened(getattr(found, field.name))}"))
    for field in found.limits.DESCRIPTOR.fields:
        say(f"limits.{field.name}: {getattr(found.limits, field.name)}")


@app.command()
def credentials(
    out: Annotated[Path, typer.Option(envvar=_variable("OUT"), help="Folder; server/, client/, … go below it.")],
    names: Annotated[
        list[str] | None,
        typer.Option("--host", envvar=_variable("NAMES"), help="What clients call; repeat it for several."),
    ] = None,
    device_name: Annotated[
        str,
        typer.Option(
            "--device",
            envvar=_variable("DEVICE_NAME"),
            metavar="NAME",
            help="A token and a certificate for one device, in devices/NAME.",
            show_default=False,
        ),
    ] = "",
    days: Annotated[
        int, typer.Option(envvar=_variable("DAYS"), help="Lifetime of a certificate signed now.", max=MOST_DAYS)
    ] = 365,
    renew: Annotated[
        bool, typer.Option("--renew", help="A new authority and new tokens beside the old ones, which still hold.")
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="End a renewal: what was there before it holds no longer.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="All anew; devices that have client/ are locked out until they get this.")
    ] = False,
) -> None:
    """Write a certificate and a token for serving beyond this machine, or add to those that are there.

    Authority and token stay, so devices need nothing new: a certificate that lacks a --host, or has less than two weeks
    left, is signed again by the same authority, whose key lies in authority/; keep that away from server and devices.
    A server that runs takes what is new without a restart. To revoke a device remove its line from server/token.
    """
    try:
        from edge_server import credentials as files

        done = files.write(out, names or [], days=days, device=device_name, renew=renew, finish=finish, replace=replace)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        _give_up(error)
    for line in done.told.splitlines():
        say(line)


async def _ask(address: str, security: ClientSecurity) -> tuple[tofc_pb2.GetServerInfoResponse, datetime | None]:
    """What a server says, and until when its certificate is valid."""
    found = await _info(address, security)
    direct = security.encrypted and not Dialled.of(address).proxy
    return found, await valid_until(address, security) if direct else None


async def _info(address: str, security: ClientSecurity) -> tofc_pb2.GetServerInfoResponse:
    async with dial(address, security) as channel:
        stub: Any = tofc_pb2_grpc.TofcServiceStub(channel)
        try:
            found: tofc_pb2.GetServerInfoResponse | None = await stub.GetServerInfo(
                tofc_pb2.GetServerInfoRequest(), timeout=CONNECT_S, metadata=security.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise await _unanswered(address, security, from_call(error)) from error
    if found is None:  # gRPC's word for bytes that are no such message
        raise InternalError(f"what {address} answered cannot be read; update the older of server and this command")
    return found


async def _unanswered(address: str, security: ClientSecurity, error: TofcError) -> TofcError:
    """The error with what was dialled, where the server itself did not say what is wrong."""
    if error.reason == UnavailableError.reason:
        return await Dialled.of(address).explain(security, error.message, option="")
    if error.reason == DeadlineError.reason:
        return Dialled.of(address).silent(CONNECT_S, option="")
    return error


def _announce(server: "RunningServer") -> None:
    say(f"listening on {server.address}")


def _log_to_stderr(level: str) -> None:
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"log level {level!r}; allowed are debug, info, warning, error and critical")
    logging.basicConfig(level=number, handlers=[QueuedLog()])
    for noisy in ("asyncio", "grpc"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))


def _warn(text: str) -> None:
    note(f"edge-server: {text}")


def _give_up(error: Exception) -> NoReturn:
    told = f"{error}; {install('server')}" if isinstance(error, ModuleNotFoundError) else sentence(error)
    note(f"edge-server: {told}")
    raise typer.Exit(2 if isinstance(error, WRONG_USE) and not out_of_memory(error) else 1)
