"""The command `edge-server`: serve a model, show what a server runs, or write a server's credentials.

Promises that every option is also an environment variable (TOFC_SERVER_…; except for those that can lock devices out of
a server) and that an error ends the command with one line on stderr and an exit code: 2 for wrong use, 1 when this
machine or a server refuses. Leaves what options mean to `settings`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import grpc
import typer

from edge_server.engine_loading import hide_torch
from edge_server.log import FORMATTERS, QueuedLog
from edge_server.settings import IMAGE_BYTES, IMAGE_PIXELS, MIB, ServerSettings, SessionLimits
from tofc.command import Program
from tofc.error_text import describe, shortened
from tofc.errors import CallError, DeadlineError, Error, InternalError, UnavailableError, UsageError
from tofc.install import install
from tofc.model.feature_codecs import DEFAULT
from tofc.model.shipped import NANO, find_model, shipped_models
from tofc.model.torch_threads import MAX_THREADS
from tofc.out_of_memory import out_of_memory
from tofc.rpc.channel import CONNECT_TIMEOUT_S, dial
from tofc.rpc.client_security import load_client_security
from tofc.rpc.connection_errors import DialTarget
from tofc.rpc.errors import from_call
from tofc.rpc.peer_certificate import fetch_expiry
from tofc.rpc.security import ClientSecurity
from tofc.secret_file import check_exist
from tofc.terminal import note, one_line, say
from tofc.v1 import tofc_pb2 as pb
from tofc.v1 import tofc_pb2_grpc

if TYPE_CHECKING:
    from edge_server.server import RunningServer

app = Program("edge-server", help="Serve a model to devices, show what a server runs, or write its credentials.")

BASE = ServerSettings(model=NANO)
MAX_DAYS = 36_500
MAX_CODECS = 50  # lines of `info`
EXIT_CODES = "Exit codes: 0 success; 1 refused by a server or this machine, or no answer; 2 wrong use; 70 a defect."
WRONG_USE = (UsageError, OSError)


def _variable(name: str) -> str:
    return f"TOFC_SERVER_{name}"


@app.command(epilog=EXIT_CODES)
def serve(
    model: Annotated[
        Path,
        typer.Option(
            envvar=[_variable("MODEL"), "TOFC_MODEL"],
            help="Folder of a checkpoint, whole or its server half, or the name of a model that ships with TOFC.",
            show_default="nano",
            metavar="NAME|PATH",
        ),
    ] = NANO,
    feature_codec: Annotated[
        str | None,
        typer.Option(
            envvar=_variable("FEATURE_CODEC"),
            help="Serve only this codec of the model: the name of its folder in codecs/, or default. Without the "
            "option each device chooses.",
            show_default="every codec of the model",
            metavar="NAME",
        ),
    ] = BASE.feature_codec,
    host: Annotated[
        str,
        typer.Option(
            envvar=_variable("HOST"),
            help="Address to listen on; all but 127.0.0.1, ::1 and localhost need TLS and a token.",
        ),
    ] = BASE.host,
    port: Annotated[
        int, typer.Option(envvar=_variable("PORT"), help="Port to listen on. 0: any free one.", min=0, max=65535)
    ] = BASE.port,
    tls_cert: Annotated[
        Path | None,
        typer.Option(envvar=_variable("TLS_CERT"), help="PEM file of the server's certificate chain; turns TLS on."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar=_variable("TLS_KEY"), help="PEM file of the private key of --tls-cert.")
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            envvar=_variable("TLS_CLIENT_CA"),
            help="PEM file of an authority; only clients with a certificate signed by it may connect.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar=_variable("TOKEN_FILE"),
            help="File of the tokens that clients may use, one per line: TOKEN, or TOKEN DEVICE.",
        ),
    ] = None,
    take_images: Annotated[
        bool,
        typer.Option(
            "--take-images",
            envvar=_variable("TAKE_IMAGES"),
            help="Also accept pictures as image files (device-client --mode image); needs a whole checkpoint.",
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(envvar=_variable("DEVICE"), help="Where the model runs: cpu, cuda, cuda:1, …")
    ] = BASE.device,
    dtype: Annotated[
        str,
        typer.Option(
            envvar=_variable("DTYPE"),
            help="Number format of the model: float32, bfloat16, float16; auto: float32 on a CPU, else as stored.",
        ),
    ] = BASE.dtype,
    engine: Annotated[
        str,
        typer.Option(
            envvar=_variable("ENGINE"),
            help="What runs the decoder: embedded (transformers, in this process), vllm-remote (vLLM in other "
            "processes, at --engine-url) or vllm (in this process).",
        ),
    ] = BASE.engine,
    engine_url: Annotated[
        list[str] | None,
        typer.Option(
            envvar=_variable("ENGINE_URL"),
            help="Address of a vLLM or vllm-router, http://HOST:PORT; repeat it for several (in the variable: "
            "separated by spaces). Keep it private, reachable for edge servers only: whoever reaches it may ask it "
            "anything. Beyond this machine it needs https, or --engine-private-network.",
            show_default=False,
        ),
    ] = None,
    engine_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar=_variable("ENGINE_KEY_FILE"),
            help="File whose first line is the API key of the engines (vLLM's --api-key).",
        ),
    ] = None,
    engine_dtype: Annotated[
        str | None,
        typer.Option(
            envvar=_variable("ENGINE_DTYPE"),
            help="Number format of vLLM, in which it gets its rows: as its own --dtype.",
            show_default="the checkpoint's",
        ),
    ] = None,
    engine_private_network: Annotated[
        bool,
        typer.Option(
            "--engine-private-network",
            envvar=_variable("ENGINE_PRIVATE_NETWORK"),
            help="Allow http:// engines on other machines: nobody else can read that network.",
        ),
    ] = False,
    cuda_graph: Annotated[
        bool,
        typer.Option(
            "--cuda-graph",
            envvar=_variable("CUDA_GRAPH"),
            help="With --engine embedded on a GPU: replay each token as one CUDA graph. Not tried on a GPU yet.",
        ),
    ] = False,
    max_new_tokens: Annotated[
        int,
        typer.Option(envvar=_variable("MAX_NEW_TOKENS"), help="Most tokens of one answer, thinking included.", min=1),
    ] = BASE.limits.new_tokens,
    sessions: Annotated[
        int, typer.Option(envvar=_variable("SESSIONS"), help="Most sessions open at once.", min=1)
    ] = BASE.sessions,
    questions: Annotated[
        int, typer.Option(envvar=_variable("QUESTIONS"), help="Most questions in flight in one session.", min=1)
    ] = BASE.limits.questions_in_flight,
    views: Annotated[
        int,
        typer.Option(
            envvar=_variable("VIEWS"),
            help="Most views of one picture. 0: as many as the model's view rule gives.",
            min=0,
        ),
    ] = BASE.limits.views_per_picture,
    samples: Annotated[
        int,
        typer.Option(
            envvar=_variable("SAMPLES"),
            help="Most samples of one question (device-client --pacore, --vote), all rounds together. 0: none.",
            min=0,
        ),
    ] = BASE.limits.samples,
    queue: Annotated[
        int, typer.Option(envvar=_variable("QUEUE"), help="Most questions that wait to be answered.", min=1)
    ] = BASE.engine_queue,
    parallel: Annotated[
        int,
        typer.Option(
            envvar=_variable("PARALLEL"),
            help="Most questions that are answered at once.",
            min=1,
        ),
    ] = BASE.engine_parallel,
    engine_cache_mib: Annotated[
        int | None,
        typer.Option(
            envvar=_variable("ENGINE_CACHE_MIB"),
            help="Memory for the decoder's keys and values, of questions in progress and of earlier turns, in MiB.",
            show_default="1024 on a CPU, else 4096",
            min=1,
        ),
    ] = None,
    cache_mib: Annotated[
        int,
        typer.Option(
            envvar=_variable("CACHE_MIB"),
            help="Memory for received pictures, in MiB.",
            min=1,
        ),
    ] = BASE.cache_bytes // MIB,
    threads: Annotated[
        int, typer.Option(envvar=_variable("THREADS"), help="Threads that decode packets and build prompts.", min=1)
    ] = BASE.threads,
    engine_threads: Annotated[
        int | None,
        typer.Option(
            envvar=_variable("ENGINE_THREADS"),
            help="Threads of the model on a CPU.",
            show_default="OMP_NUM_THREADS, else one per core",
            min=1,
            max=MAX_THREADS,
        ),
    ] = BASE.engine_threads,
    picture_timeout: Annotated[
        float,
        typer.Option(
            envvar=_variable("PICTURE_TIMEOUT"), help="Seconds that a question waits for its pictures to arrive."
        ),
    ] = BASE.picture_timeout_s,
    grace: Annotated[
        float,
        typer.Option(
            envvar=_variable("GRACE"), help="Seconds for questions in progress to finish when the server stops.", min=0
        ),
    ] = BASE.grace_s,
    log_level: Annotated[
        str,
        typer.Option(
            envvar=_variable("LOG_LEVEL"), help="Least severe messages to log: debug, info, warning, error or critical."
        ),
    ] = "info",
    log_format: Annotated[
        str,
        typer.Option(
            envvar=_variable("LOG_FORMAT"), help="Lines of the log: text, for people, or json, one object a line."
        ),
    ] = "text",
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar=_variable("METRICS_PORT"),
            help="Port of /metrics for Prometheus and of the probes /livez and /readyz, without TLS. 0: any free one.",
            show_default="not served",
            min=0,
            max=65535,
        ),
    ] = BASE.metrics_port,
    metrics_host: Annotated[
        str,
        typer.Option(
            envvar=_variable("METRICS_HOST"),
            help="Address of --metrics-port. Anyone who reaches it reads the metrics: no TLS, no token.",
        ),
    ] = BASE.metrics_host,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            envvar=_variable("TRACE"),
            help="Send OpenTelemetry traces to localhost:4317, or where OTEL_EXPORTER_OTLP_ENDPOINT says.",
        ),
    ] = False,
) -> None:
    """Serve a model until SIGTERM or SIGINT."""
    try:
        if not find_model(model).is_dir():  # checked before imports that take seconds
            raise UsageError(
                "--model must be the folder of a checkpoint, whole or its server half, or the name of a model that "
                f"ships with TOFC ({', '.join(shipped_models())}), got {model}"
            )
        check_exist(
            {
                **{"--tls-cert": tls_cert, "--tls-key": tls_key},
                **{"--tls-client-ca": tls_client_ca, "--token-file": token_file},
            },
            "`edge-server credentials` writes such files",
        )
        _log_to_stderr(log_level, log_format)
        check_exist({"--engine-key-file": engine_key_file}, "write the engine's API key into it")
        settings = ServerSettings(
            model=model,
            feature_codec=feature_codec,
            host=host,
            port=port,
            metrics_host=metrics_host,
            metrics_port=metrics_port,
            trace=trace,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_client_ca=tls_client_ca,
            token_file=token_file,
            device=device,
            dtype=dtype,
            engine=engine,
            engine_urls=tuple(engine_url or ()),
            engine_key_file=engine_key_file,
            engine_dtype=engine_dtype,
            engine_private_network=engine_private_network,
            cuda_graph=cuda_graph,
            limits=SessionLimits(
                new_tokens=max_new_tokens,
                questions_in_flight=questions,
                views_per_picture=views,
                samples=samples,
                image_bytes=IMAGE_BYTES if take_images else 0,
                image_pixels=IMAGE_PIXELS if take_images else 0,
            ),
            sessions=sessions,
            engine_queue=queue,
            engine_parallel=parallel,
            engine_cache_bytes=None if engine_cache_mib is None else engine_cache_mib * MIB,
            cache_bytes=cache_mib * MIB,
            threads=threads,
            engine_threads=engine_threads,
            picture_timeout_s=picture_timeout,
            grace_s=grace,
        )
        if not settings.needs_torch:
            hide_torch()
        from edge_server.server import run  # takes seconds; the mistakes above are reported before

        asyncio.run(run(settings, _print_address))
    except BrokenPipeError:  # nobody reads the output: `Program` ends quietly
        raise
    except (Error, OSError, ModuleNotFoundError) as error:
        _fail(error)
    except Exception as error:  # for instance while loading; later the sessions receive such errors
        if not out_of_memory(error):  # a defect: `Program` shows it
            raise
        note(f"edge-server: {describe(MemoryError(str(error)))}")
        raise typer.Exit(1) from None


@app.command(epilog=EXIT_CODES)
def info(
    address: Annotated[
        str, typer.Argument(help="Address of the server, HOST:PORT.", envvar=_variable("ADDRESS"))
    ] = "127.0.0.1:50061",
    tls: Annotated[
        bool, typer.Option(envvar=_variable("TLS"), help="Use TLS and trust the authorities of this system.")
    ] = False,
    tls_ca: Annotated[
        Path | None, typer.Option(envvar=_variable("TLS_CA"), help="PEM file of the authority to trust; implies --tls.")
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            envvar=_variable("TLS_CERT"),
            help="PEM file of a client certificate (the server's own also works), if the server requires one.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar=_variable("TLS_KEY"), help="PEM file of the private key of --tls-cert.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(envvar=_variable("TOKEN_FILE"), help="File whose first line is a token that the server accepts."),
    ] = None,
) -> None:
    """Show what a server runs, what it allows and how busy it is."""
    try:
        security = load_client_security(
            token_file=token_file, tls=tls, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key, warn=_warn
        )
        found, expiry = asyncio.run(_fetch_info(address, security))
    except (Error, OSError) as error:
        _fail(error)
    if expiry is not None:
        say(f"certificate: valid until {expiry:%Y-%m-%d}")
    for line in _info_lines(found):
        say(line)


@app.command()
def credentials(
    out: Annotated[
        Path,
        typer.Option(envvar=_variable("OUT"), help="Folder to write into: server/, client/, devices/, authority/."),
    ],
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--host", envvar=_variable("NAMES"), help="Name or address that clients dial; repeat it for several."
        ),
    ] = None,
    device_name: Annotated[
        str,
        typer.Option(
            "--device",
            envvar=_variable("DEVICE_NAME"),
            metavar="NAME",
            help="Also write a token and a certificate for one device, to devices/NAME.",
            show_default=False,
        ),
    ] = "",
    days: Annotated[
        int,
        typer.Option(
            envvar=_variable("DAYS"), help="Days that new certificates are valid; more than 14.", max=MAX_DAYS
        ),
    ] = 365,
    renew: Annotated[
        bool,
        typer.Option("--renew", help="Add a new authority and new tokens; the old ones stay valid until --finish."),
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="End a renewal: the old authority and tokens are no longer valid.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write everything anew; devices that have the old client/ are locked out.")
    ] = False,
) -> None:
    """Write a certificate and a token for serving beyond this machine, or add to existing ones.

    An existing authority and token are kept, so devices need no new files: a
    certificate that lacks a --host, or expires within two weeks, is signed
    again by the same authority. The key of the authority is in authority/; keep
    it on neither the server nor the devices. A running server uses new files
    without a restart. To revoke a device, remove its line from server/token.
    """
    try:
        from edge_server import credentials as files

        done = files.write(out, names or [], days=days, device=device_name, renew=renew, finish=finish, replace=replace)
    except (Error, OSError, ModuleNotFoundError) as error:
        _fail(error)
    for line in done.summary.splitlines():
        say(line)


async def _fetch_info(address: str, security: ClientSecurity) -> tuple[pb.GetServerInfoResponse, datetime | None]:
    """Return what a server says about itself, and when its certificate expires."""
    found = await _get_server_info(address, security)
    direct = security.encrypted and not DialTarget.of(address).proxy
    return found, await fetch_expiry(address, security) if direct else None


async def _get_server_info(address: str, security: ClientSecurity) -> pb.GetServerInfoResponse:
    async with dial(address, security) as channel:
        stub: Any = tofc_pb2_grpc.TofcServiceStub(channel)
        try:
            found: pb.GetServerInfoResponse | None = await stub.GetServerInfo(
                pb.GetServerInfoRequest(), timeout=CONNECT_TIMEOUT_S, metadata=security.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise await _explain(address, security, from_call(error)) from error
    if found is None:  # what gRPC returns for bytes that are not this message
        raise InternalError(f"the reply of {address} cannot be read; update the older of the server and this command")
    return found


async def _explain(address: str, security: ClientSecurity, error: CallError) -> CallError:
    """Return an error that names the address dialled, unless the error comes from the server itself."""
    if error.reason == UnavailableError.reason:
        return await DialTarget.of(address).diagnose(security, error.message, option="")
    if error.reason == DeadlineError.reason:
        return DialTarget.of(address).timeout_error(CONNECT_TIMEOUT_S, option="")
    return error


def _info_lines(found: pb.GetServerInfoResponse) -> Iterator[str]:
    """Yield lines on what a server runs, how busy it is and what it allows."""
    for name in ("server_version", "model_id", "codec_id", "engine"):
        yield one_line(f"{name}: {shortened(getattr(found, name))}")
        if name == "codec_id" and [codec.name for codec in found.codecs] != [DEFAULT]:
            for codec in found.codecs[:MAX_CODECS]:
                yield one_line(shortened(f"codec {codec.name}: {codec.codec_id} ({codec.entropy_model})"))
    if found.HasField("load"):  # servers of earlier versions do not send it
        load = found.load
        yield f"uptime: {_duration(found.uptime_s)}"
        yield f"sessions: {load.sessions_open} open (at most {load.sessions_allowed})"
        running = f"{load.questions_running} running (at most {load.questions_running_allowed})"
        yield f"questions: {running}, {load.questions_waiting} waiting (at most {load.questions_waiting_allowed})"
    for field in found.limits.DESCRIPTOR.fields:
        yield f"limits.{field.name}: {getattr(found.limits, field.name)}"


def _duration(seconds: int) -> str:
    """Spell a duration in days, hours and minutes.

    >>> _duration(59), _duration(3 * 3600 + 120), _duration(2 * 86_400 + 3600)
    ('less than a minute', '3 h 2 min', '2 d 1 h 0 min')
    """
    days, rest = divmod(seconds, 86_400)
    parts = [(days, "d"), (rest // 3600, "h"), (rest % 3600 // 60, "min")]
    while parts and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{count} {unit}" for count, unit in parts) or "less than a minute"


def _print_address(server: RunningServer) -> None:
    say(f"listening on {server.address}")
    if server.monitoring is not None:
        say(f"metrics on http://{server.monitoring.address}/metrics")


def _log_to_stderr(level: str, kind: str) -> None:
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise UsageError(f"--log-level must be debug, info, warning, error or critical, got {level!r}")
    if kind not in FORMATTERS:
        raise UsageError(f"--log-format must be {' or '.join(FORMATTERS)}, got {kind!r}")
    logging.basicConfig(level=number, handlers=[QueuedLog(formatter=FORMATTERS[kind]())])
    for noisy in ("asyncio", "grpc"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))


def _warn(text: str) -> None:
    note(f"edge-server: {text}")


def _fail(error: Exception) -> NoReturn:
    message = f"{error}; {install('server')}" if isinstance(error, ModuleNotFoundError) else describe(error)
    note(f"edge-server: {message}")
    raise typer.Exit(2 if isinstance(error, WRONG_USE) and not out_of_memory(error) else 1)
