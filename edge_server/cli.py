"""The command `edge-server`: serve a model, or ask a server what it is.

Promises that every option is also an environment variable (TOFC_SERVER_…) and that a mistake ends with a sentence and
an exit code: 2 for wrong use, 1 for what a machine or a server refuses. Leaves what options mean to `settings`.
"""

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import grpc
import typer

from edge_server.log import QueuedLog
from edge_server.settings import IMAGE_BYTES, IMAGE_PIXELS, MIB, ServerSettings, SessionLimits
from shared.rpc.channel import ClientSecurity, dial, read_token
from shared.rpc.errors import TofcError, UnsafeAddressError, from_call
from shared.rpc.tofc.v1 import tofc_pb2, tofc_pb2_grpc
from shared.sentence import sentence

if TYPE_CHECKING:
    from edge_server.server import RunningServer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Serve a model to devices, or ask a server what it is.",
)

NANO = Path(__file__).resolve().parents[1] / "models" / "nano"
BASE = ServerSettings(model=NANO)
INFO_TIMEOUT = 10.0  # seconds
MOST_DAYS = 36_500
WRONG_USE = (ValueError, OSError, UnsafeAddressError)


def _variable(name: str) -> str:
    return f"TOFC_SERVER_{name}"


@app.callback()
def _main() -> None:
    pass


@app.command()
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
    token_file: Annotated[
        Path | None, typer.Option(envvar=_variable("TOKEN_FILE"), help="A file with the token that clients show.")
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
            picture_timeout=picture_timeout,
            grace=grace,
        )
        from edge_server.server import run  # only here: what is wrong above is said before seconds of imports

        asyncio.run(run(settings, _announce))
    except (TofcError, ValueError, OSError, ModuleNotFoundError) as error:  # Checkpoint-, CodecError are ValueErrors
        _give_up(error)


@app.command()
def info(
    address: Annotated[str, typer.Argument(help="HOST:PORT", envvar=_variable("ADDRESS"))] = "127.0.0.1:50061",
    tls: Annotated[bool, typer.Option(envvar=_variable("TLS"), help="Use TLS with the system's authorities.")] = False,
    tls_ca: Annotated[
        Path | None, typer.Option(envvar=_variable("TLS_CA"), help="The authority to trust, PEM; implies TLS.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(envvar=_variable("TOKEN_FILE"), help="The server's token.")] = None,
) -> None:
    """Says what a server runs and allows."""
    try:
        security = ClientSecurity(
            tls=tls,
            ca=tls_ca.read_bytes() if tls_ca else None,
            token=read_token(token_file) if token_file else None,
        )
        found = asyncio.run(_info(address, security))
    except (TofcError, ValueError, OSError) as error:
        _give_up(error)
    for field in found.DESCRIPTOR.fields:
        if field.name != "limits":
            typer.echo(f"{field.name}: {getattr(found, field.name)}")
    for field in found.limits.DESCRIPTOR.fields:
        typer.echo(f"limits.{field.name}: {getattr(found.limits, field.name)}")


@app.command()
def credentials(
    out: Annotated[Path, typer.Option(envvar=_variable("OUT"), help="Folder; server/ and client/ go below it.")],
    names: Annotated[
        list[str], typer.Option("--host", envvar=_variable("NAMES"), help="What clients call; repeat it for several.")
    ],
    days: Annotated[int, typer.Option(envvar=_variable("DAYS"), help="Lifetime.", max=MOST_DAYS)] = 365,
) -> None:
    """Write a certificate and a token for serving beyond this machine; keep those that are still good."""
    try:
        from edge_server import credentials as files

        written = files.write(out, names, days=days)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        _give_up(error)
    typer.echo(f"{'written' if written.fresh else 'kept'}: {written.certificate.parent}, {written.authority.parent}")


async def _info(address: str, security: ClientSecurity) -> tofc_pb2.GetServerInfoResponse:
    async with dial(address, security) as channel:
        stub: Any = tofc_pb2_grpc.TofcServiceStub(channel)
        try:
            found: tofc_pb2.GetServerInfoResponse = await stub.GetServerInfo(
                tofc_pb2.GetServerInfoRequest(), timeout=INFO_TIMEOUT, metadata=security.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from error
    return found


def _announce(server: "RunningServer") -> None:
    typer.echo(f"listening on {server.address}")


def _log_to_stderr(level: str) -> None:
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"log level {level!r}; allowed are debug, info, warning, error and critical")
    logging.basicConfig(level=number, handlers=[QueuedLog()])
    for noisy in ("asyncio", "grpc"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))


def _give_up(error: Exception) -> NoReturn:
    told = f"{error}; pip install 'tofc[server]'" if isinstance(error, ModuleNotFoundError) else sentence(error)
    typer.echo(f"edge-server: {told}", err=True)
    raise typer.Exit(2 if isinstance(error, WRONG_USE) else 1)
