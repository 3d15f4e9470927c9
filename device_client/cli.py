"""The command `device-client`: ask, chat, serve an endpoint, draw a map of what would be sent, or measure links.

Promises that wrong arguments are reported before anything slow begins. Leaves reading the command line and errors to
`program`, the options to `options`, and the work to `ask`, `batch`, `chat`, `endpoint`,
`inspect` and `bench_command`.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from device_client.ask import ask_all, split_arguments
from device_client.bench_options import BenchOptions
from device_client.chat import converse
from device_client.encoder import Encoder, EncoderThread
from device_client.endpoint.options import EndpointOptions
from device_client.exit_codes import LINES_FAILED
from device_client.options import AnswerOptions, ImageOptions, PacketOptions, ServerOptions, encoder_opener
from device_client.picture import Picture
from device_client.question import check_text
from device_client.reasoning import Reasoning
from device_client.sampling import Sampling
from device_client.session import Session
from device_client.waiting import log
from tofc.errors import UsageError
from tofc.install import install
from tofc.option_groups import Argument, Option
from tofc.terminal import note, one_line, say
from tofc.tracing import Tracer

T = TypeVar("T")

EXIT_CODES = (
    "Exit codes: 0 every question was answered; 2 wrong use, nothing was asked; 3 no server: unreachable, lost, its "
    "certificate not trusted, still loading after --wait, or no answer within --timeout; 4 some lines of a batch "
    "failed; 5 the server refused: token, model, limits, full; 70 a defect; 130 interrupted; 141 nobody reads the "
    "output any more."
)


COMMANDS: dict[str, tuple[Callable[..., None], str | None]] = {}  # name → the command, a text below its help


def command(*, epilog: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command; its parameters are options (`tofc.option_groups`)."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        COMMANDS[function.__name__] = function, epilog
        return function

    return register


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    from device_client.typer_app import app  # imports typer, which most calls of the program do without

    return app


@command(epilog=EXIT_CODES)
def ask(
    *,
    arguments: Annotated[
        list[str] | None,
        Argument(
            help="One or more pictures, then the question; with --question only pictures.",
            metavar="PICTURE... QUESTION",
            show_default=False,
        ),
    ] = None,
    more_questions: Annotated[
        list[str] | None,
        Option(
            "--question",
            "-q",
            help="A question; repeat the option to ask several about the same pictures.",
            metavar="TEXT",
        ),
    ] = None,
    batch: Annotated[
        Path | None,
        Option(
            envvar="TOFC_DEVICE_BATCH",
            help='Answer every line of this UTF-8 file, a JSON object {"image": PATH, "question": TEXT}; several '
            'pictures: "images": [PATH, …]. Paths are relative to the file, or to the working directory if it is a '
            "pipe. Other fields are copied to the answer; one with the name of a result is copied as NAME_given.",
            metavar="FILE.jsonl",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            envvar="TOFC_DEVICE_BATCH_OUT",
            help="File for the answers of --batch, one JSON object per line.",
            metavar="OUT.jsonl",
        ),
    ] = None,
    resume: Annotated[
        bool,
        Option(
            "--resume",
            envvar="TOFC_DEVICE_RESUME",
            help="Continue a batch that was stopped: answer the lines that OUT.jsonl lacks.",
        ),
    ] = False,
    server: ServerOptions,
    packets: PacketOptions,
    image: ImageOptions,
    sampling: Sampling,
    reasoning: Reasoning,
    answers: AnswerOptions,
) -> None:
    """Ask about pictures. The answer goes to stdout as it arrives, its cost to stderr.

    The text is for people: an answer may have several lines, an empty answer is an empty line, and control characters
    are shown as escapes. Programs should use --json.
    """
    tracer = server.tracer()
    open_session, open_encoder = _session_opener(server, tracer), encoder_opener(packets, image)
    if batch is not None:
        if arguments or more_questions or answers.as_json:
            raise UsageError("--batch takes pictures and questions from the file; give no others, and not --json")
        if out is None:
            raise UsageError("--batch needs --out OUT.jsonl, the file for the answers")
        from device_client import batch_progress  # imports rich

        running = batch_progress.run(
            batch,
            out,
            lambda: open_session(open_encoder()),
            resume=resume,
            sampling=sampling,
            reasoning=reasoning,
            thinking=answers.show_thinking,
            timeout_s=answers.limit_s,
        )
        if _run(running, tracer):
            raise SystemExit(LINES_FAILED)
        return
    if out is not None or resume:
        raise UsageError("--out and --resume belong to --batch FILE.jsonl; add that, or leave them out")
    paths, questions = split_arguments(arguments or [], more_questions or [])
    if not paths:
        got = f"only {one_line(questions[0])!r}" if questions else "neither"
        raise UsageError(f'give a picture and a question, got {got}: device-client ask cat.png "what is this?"')
    if not more_questions and os.path.isfile(questions[0]):
        raise UsageError(
            f"the last argument must be the question, got the file {one_line(questions[0])!r}; write for instance: "
            f'device-client ask {one_line(questions[0])} "what is this?"'
        )
    for question in questions:
        check_text(question)
    _check_exist(paths)

    async def run() -> None:
        async with _session(paths, open_encoder(), open_session) as (session, pictures):
            await ask_all(
                session,
                pictures,
                questions,
                sampling=sampling,
                reasoning=reasoning,
                thinking=answers.show_thinking,
                timeout_s=answers.limit_s,
                as_json=answers.as_json,
            )

    _run(run(), tracer)


@command(epilog=EXIT_CODES)
def chat(
    *,
    paths: Annotated[list[Path], Argument(help="One or more pictures.", metavar="PICTURE")],
    server: ServerOptions,
    packets: PacketOptions,
    image: ImageOptions,
    sampling: Sampling,
    reasoning: Reasoning,
    answers: AnswerOptions,
) -> None:
    """Chat about pictures: one question per line of stdin, each asked with the earlier questions and answers.

    Every question gets at least one line on stdout, an empty one if it is refused; with --json exactly one.
    The pictures are read once, at the start, even if their files are replaced meanwhile.
    """
    tracer = server.tracer()
    open_session, open_encoder = _session_opener(server, tracer), encoder_opener(packets, image)
    _check_exist(paths)

    async def run() -> int:
        async with _session(paths, open_encoder(), open_session) as (session, pictures):
            return await converse(
                session,
                pictures,
                sampling=sampling,
                reasoning=reasoning,
                thinking=answers.show_thinking,
                timeout_s=answers.limit_s,
                as_json=answers.as_json,
            )

    if code := _run(run(), tracer):
        raise SystemExit(code)


@command()
def inspect(
    *,
    path: Annotated[Path, Argument(help="A picture.", metavar="PICTURE")],
    out: Annotated[Path, Option(envvar="TOFC_DEVICE_INSPECT_OUT", help="File for the map (PNG).", metavar="MAP.png")],
    packets: PacketOptions,
) -> None:
    """Draw a map of what would be sent of a picture: which parts share a feature, and the bits that each feature takes.

    Beside it are the pictures that WebP and AVIF make of the same number of bytes. Nothing is sent.
    """
    from device_client.inspect import write_map  # imports what the other commands do not need

    if out.suffix.lower() != ".png":
        raise UsageError(f"--out must be a name that ends in .png, got {out}")
    if not out.parent.is_dir():
        raise UsageError(f"the folder of --out {out} does not exist; make it first")
    if out.exists() and path.exists() and out.samefile(path):
        raise UsageError(f"--out {out} is the picture itself; name another file for the map")
    note(write_map(path, out, packets.open_encoder()))


@command(epilog=EXIT_CODES)
def bench(
    *,
    path: Annotated[
        Path | None, Argument(help="A picture.", metavar="PICTURE", show_default="the picture of `make demo`")
    ] = None,
    measured: BenchOptions,
    server: ServerOptions,
    packets: PacketOptions,
) -> None:
    """Measure how soon an answer begins over a slow link: features against image files, and --mode auto.

    The link is a relay in this process, in front of the real server; nothing else on this machine is slowed. Every
    question is about a picture that the server does not know. Image files need a server that takes them.
    """
    from device_client.bench_command import run  # imports what the other commands do not need

    if path is not None:
        _check_exist([path])
    asyncio.run(run(path, measured, server, packets))


@command(epilog=EXIT_CODES)
def serve(
    *,
    endpoint: EndpointOptions,
    server: ServerOptions,
    packets: PacketOptions,
    image: ImageOptions,
) -> None:
    """Answer clients of OpenAI's chat completions on this machine, over HTTP, until Ctrl-C.

    The model is loaded once. A picture that was sent before costs no time and no bytes.
    """
    try:
        from device_client.endpoint.serve import serve as serve_endpoint
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("device_client", "tofc"):
            raise
        raise UsageError(f"serve needs {error.name}: {install('endpoint')}") from error
    tracer = server.tracer()
    open_session, open_encoder = _session_opener(server, tracer), encoder_opener(packets, image)

    async def run() -> None:
        await serve_endpoint(open_session(open_encoder()), endpoint, packets.model, say=_say_now)

    _run(run(), tracer)


def _say_now(text: str) -> None:
    say(text)
    sys.stdout.flush()


OpenSession = Callable[[Encoder | EncoderThread], Session]


def _session_opener(server: ServerOptions, tracer: Tracer) -> OpenSession:
    return partial(Session, server.targets(), wait_s=server.wait_s, log=log, tracer=tracer)


def _run(work: Coroutine[Any, Any, T], tracer: Tracer) -> T:
    """Run a command's work, then send the spans that wait."""
    try:
        return asyncio.run(work)
    finally:
        tracer.close()


@asynccontextmanager
async def _session(
    paths: Sequence[Path], encoder: Encoder, open_session: OpenSession
) -> AsyncIterator[tuple[Session, list[Picture]]]:
    """Open the pictures, then a session for them."""
    thread = EncoderThread(encoder)
    thread.start()  # the model loads while pictures are opened and the server is called
    try:
        pictures = [thread.open(path) for path in paths]
    except BaseException:
        thread.close()
        raise
    async with open_session(thread) as session:
        yield session, pictures


def _check_exist(paths: Sequence[Path]) -> None:
    for path in paths:
        if re.match(r"\w+:/", str(path)):  # of :// Path keeps one
            raise UsageError(f"{path} is an address; pictures must be files on this machine: download it first")
        if not os.path.lexists(path):  # why a file that exists cannot be opened is reported when it is opened
            raise UsageError(f"{path} does not exist; give the path of a picture (JPEG, PNG, WebP, …)")
