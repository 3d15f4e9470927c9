"""The command `device-client`: ask about pictures, talk about them, or look at what would be sent of one.

Promises one line and an exit code for everything that can go wrong, and that what is wrong with the arguments
is said before anything slow begins. Leaves the work to `ask`, `batch`, `chat` and `inspect`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from device_client import batch as batches
from device_client.ask import ask_all, split_words
from device_client.batch_out import open_out
from device_client.chat import READER, converse
from device_client.compute import Compute
from device_client.encoder import THREAD, Encoder, EncoderThread, TowerEncoder
from device_client.errors import INTERRUPTED, LINES_FAILED, EncoderError, UseError, exit_code
from device_client.image_encoder import ImageEncoder
from device_client.link import Target
from device_client.options import (
    FORM,
    Budget,
    Device,
    Dtype,
    Features,
    FileCodec,
    FileQuality,
    FileScale,
    Json,
    MaxTokens,
    Mode,
    Model,
    Preset,
    Seed,
    Server,
    ShowThinking,
    Temperature,
    Threads,
    Timeout,
    Tls,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    TopK,
    TopP,
    Wait,
)
from device_client.picture import ImageForm
from device_client.rate import RateChoice
from device_client.session import Sampling, Session
from device_client.waiting import tell
from shared.command import Program
from shared.out_of_memory import out_of_memory
from shared.rpc.channel import DEFAULT_PORT, split_address
from shared.rpc.client_files import client_security
from shared.rpc.errors import TofcError
from shared.sentence import sentence
from shared.terminal import note, one_line

NANO = Path(__file__).resolve().parents[1] / "models" / "nano"
MODES = ("features", "image")
SERVER = f"127.0.0.1:{DEFAULT_PORT}"
TIMEOUT = 300.0
EXIT_CODES = (
    "Exit codes: 0 every question was answered; 2 wrong use, nothing was asked; 3 no server: unreachable, lost, of an "
    "untrusted certificate, still loading after --wait, or no answer within --timeout; 4 some lines of a batch failed; "
    "5 the server refuses: token, model, limits, no room; 130 interrupted; 141 nobody reads the output any more."
)

Begin = Callable[[Encoder | EncoderThread], Session]


class Client(Program):
    """Leaves at once when done, even while the encoder thread is importing torch or within a long view."""

    def leave(self, code: int) -> NoReturn:
        if "torch" in sys.modules or any(thread.name in (THREAD, READER) for thread in threading.enumerate()):
            os._exit(code)  # unwinding torch takes a second, and may crash under a thread that is within it
        super().leave(code)


app = Client(help="Ask an edge server about pictures; some fifty bytes of each leave this device.")


@app.callback()
def _commands() -> None:
    """Ask an edge server about pictures; some fifty bytes of each leave this device."""
    logging.getLogger("grpc").setLevel(logging.CRITICAL)


@app.command(epilog=EXIT_CODES)
def ask(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="One or more pictures, then the question.", metavar="PICTURE... QUESTION", show_default=False
        ),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--question", "-q", help="A question; repeat it to ask several about the same pictures."),
    ] = None,
    as_json: Json = False,
    batch: Annotated[
        Path | None,
        typer.Option(
            envvar="TOFC_DEVICE_BATCH",
            help='JSON lines {"image": …, "question": …}, UTF-8. Relative paths are relative to the file, of a pipe '
            "to the working directory; other fields stay, one named like a result as NAME_given.",
            metavar="FILE.jsonl",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(envvar="TOFC_DEVICE_BATCH_OUT", help="Where a batch's answers go.", metavar="OUT.jsonl"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", envvar="TOFC_DEVICE_RESUME", help="Resume where OUT.jsonl ends.")
    ] = False,
    server: Server = SERVER,
    model: Model = NANO,
    preset: Preset = None,
    features: Features = None,
    budget_bytes: Budget = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    mode: Mode = "features",
    codec: FileCodec = None,
    quality: FileQuality = None,
    scale: FileScale = None,
    max_tokens: MaxTokens = 0,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    show_thinking: ShowThinking = False,
    token_file: TokenFile = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    timeout: Timeout = TIMEOUT,
    wait: Wait = None,
) -> None:
    """Ask about pictures. The answer goes to stdout as it comes, what it cost to stderr.

    Text is for people: an answer may have several lines, an empty one is an empty line, and control characters are
    written out. Programs read --json.
    """
    with _exit_codes():
        limit = _limit(timeout)
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        begin = _begin(server, wait, token_file=token_file, tls=tls, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key)
        packets = _Packets(
            preset=preset, features=features, budget_bytes=budget_bytes, dtype=dtype, device=device, threads=threads
        )
        open_encoder = _opener(model, packets, mode, codec, quality, scale)
        if batch is not None:
            if words or more or as_json:
                raise UseError("--batch takes its pictures and questions from the file; give no others, and no --json")
            if out is None:
                raise UseError("--batch needs --out OUT.jsonl, where the answers go")
            failed = asyncio.run(_batch(batch, out, resume, begin, open_encoder, sampling, show_thinking, limit))
            if failed:
                raise typer.Exit(LINES_FAILED)
            return
        if out is not None or resume:
            raise UseError("--out and --resume belong to --batch FILE.jsonl")
        pictures, questions = split_words(words or [], more or [])
        if not pictures:
            raise UseError('give a picture and a question: device-client ask cat.png "what is this?"')
        if any(not question.strip() for question in questions):
            raise UseError("the question is empty; ask something, for instance: what is in the picture?")
        _check_exist(pictures)
        asyncio.run(_ask(pictures, questions, begin, open_encoder, sampling, show_thinking, limit, as_json))


@app.command(epilog=EXIT_CODES)
def chat(
    pictures: Annotated[list[Path], typer.Argument(help="One or more pictures.", metavar="PICTURE...")],
    as_json: Json = False,
    server: Server = SERVER,
    model: Model = NANO,
    preset: Preset = None,
    features: Features = None,
    budget_bytes: Budget = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    mode: Mode = "features",
    codec: FileCodec = None,
    quality: FileQuality = None,
    scale: FileScale = None,
    max_tokens: MaxTokens = 0,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    show_thinking: ShowThinking = False,
    token_file: TokenFile = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    timeout: Timeout = TIMEOUT,
    wait: Wait = None,
) -> None:
    """Talk about pictures: a question a line on stdin, each asked with what was said before.

    Every question has at least a line on stdout, an empty one where it is refused; with --json it is exactly one.
    The pictures are those that the files held when the chat began, even if the files are replaced meanwhile.
    """
    with _exit_codes():
        limit = _limit(timeout)
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        begin = _begin(server, wait, token_file=token_file, tls=tls, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key)
        packets = _Packets(
            preset=preset, features=features, budget_bytes=budget_bytes, dtype=dtype, device=device, threads=threads
        )
        open_encoder = _opener(model, packets, mode, codec, quality, scale)
        _check_exist(pictures)
        if code := asyncio.run(_chat(pictures, begin, open_encoder(), sampling, show_thinking, limit, as_json)):
            raise typer.Exit(code)


@app.command()
def inspect(
    picture: Annotated[Path, typer.Argument(help="A picture.", metavar="PICTURE")],
    out: Annotated[Path, typer.Option(envvar="TOFC_DEVICE_INSPECT_OUT", help="The map, a PNG.", metavar="MAP.png")],
    model: Model = NANO,
    preset: Preset = None,
    features: Features = None,
    budget_bytes: Budget = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Draw what would be sent of a picture: its clusters, the bits each takes, and image codecs at equal bytes."""
    from device_client.inspect import draw
    from device_client.render import kilo
    from device_client.report import QUALITY, compare
    from device_client.rival import TITLES, within

    with _exit_codes():
        if out.suffix.lower() != ".png":
            raise UseError(f"--out {out} is no PNG; give a name that ends in .png")
        if not out.parent.is_dir():
            raise UseError(f"the folder of --out {out} does not exist; make it first")
        if out.exists() and picture.exists() and out.samefile(picture):
            raise UseError(f"--out {out} is the picture itself; name another file for the map")
        choice = RateChoice(preset=preset, features=features, budget=budget_bytes)
        encoder = TowerEncoder.open(model, choice, Compute(dtype=dtype, device=device or "cpu", threads=threads))
        opened = EncoderThread(encoder).open(picture)
        encoder.load()
        assert opened.image is not None, "nothing is encoded yet"
        views = list(encoder.explain(opened.image))
        rival = compare([opened], encoder.rule)
        jpeg = None
        if rival is not None:  # the drawing font has no multiplication sign
            jpeg = rival.jpeg_bytes, f"quality {QUALITY}, {rival.width} x {rival.height}"
        total = sum(len(explained.packet) for _, explained in views)
        rivals = [within(opened.image, codec, total) for codec in TITLES]
        draw(picture.name, views, opened.rows, opened.columns, jpeg, rivals).save(out, "PNG")
        note(f"{out}: {kilo(total)} in {len(views)} view{'s' * (len(views) > 1)}")


async def _ask(
    paths: list[Path],
    questions: list[str],
    begin: Begin,
    open_encoder: Callable[[], Encoder],
    sampling: Sampling,
    thinking: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    encoder = EncoderThread(open_encoder())
    pictures = [encoder.open(path) for path in paths]
    async with begin(encoder) as session:
        await ask_all(
            session,
            pictures,
            questions,
            sampling=sampling,
            thinking=thinking,
            timeout_s=timeout_s,
            as_json=as_json,
        )


async def _chat(
    paths: list[Path],
    begin: Begin,
    encoder: Encoder,
    sampling: Sampling,
    thinking: bool,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    thread = EncoderThread(encoder)
    pictures = [thread.open(path) for path in paths]
    async with begin(thread) as session:
        return await converse(
            session, pictures, sampling=sampling, thinking=thinking, timeout_s=timeout_s, as_json=as_json
        )


async def _batch(
    file: Path,
    out: Path,
    resume: bool,
    begin: Begin,
    open_encoder: Callable[[], Encoder],
    sampling: Sampling,
    thinking: bool,
    timeout_s: float | None,
) -> int:
    """The number of lines that failed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    from device_client.waiting import CONSOLE, Doing

    lines = batches.read_lines(file)
    with open_out(out, lines, questions=file, resume=resume) as answers:
        done, failed = answers.done, answers.failed
        if done == len(lines):
            told = f"; {failed} of them failed, ask those again from a file of their own" if failed else ""
            note(f"{out} holds all {done} answers already{told}")
            return failed
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        async with begin(open_encoder()) as session:
            with Progress(*columns, Doing(session.encoder), console=CONSOLE) as progress:
                task = progress.add_task("asking", total=len(lines), completed=done)

                def complain(text: str) -> None:
                    progress.console.print(Text(one_line(text), style="red"), soft_wrap=True)

                try:
                    async for answered in batches.run(
                        session,
                        lines[done:],
                        answers.file,
                        sampling=sampling,
                        thinking=thinking,
                        timeout_s=timeout_s,
                        complain=complain,
                    ):
                        done += 1
                        failed += not answered
                        progress.advance(task)
                except TofcError as error:
                    if not done or not out.is_file():
                        raise
                    told = f"{done} of {len(lines)} lines are in {out}; --resume continues there"
                    raise type(error)(f"{error} | {told}", reason=error.reason) from error
    if failed:
        note(f"{failed} of {len(lines)} lines failed; {out} says why in their field error")
    return failed


@dataclass(frozen=True, kw_only=True)
class _Packets:
    """The options that belong to packets; None where not given."""

    preset: str | None
    features: int | None
    budget_bytes: int | None
    dtype: str | None
    device: str | None
    threads: int | None


def _opener(
    model: Path, packets: _Packets, mode: str, codec: str | None, quality: int | None, scale: float | None
) -> Callable[[], Encoder]:
    """How pictures are sent. Raises UseError, ImageFileError for options that do not go together."""
    if mode not in MODES:
        raise UseError(f"--mode {mode} is not known; choose one of {', '.join(MODES)}")
    if mode == "image":
        for name, given in asdict(packets).items():
            if given is not None:
                option = "--" + name.replace("_", "-")
                raise UseError(f"{option} belongs to --mode features; a picture's file is made smaller by --quality")
        form = ImageForm(
            codec=FORM.codec if codec is None else codec,
            quality=FORM.quality if quality is None else quality,
            scale=FORM.scale if scale is None else scale,
        )
        return lambda: ImageEncoder.open(model, form)
    for option, value in (("--codec", codec), ("--quality", quality), ("--scale", scale)):
        if value is not None:
            raise UseError(f"{option} {value} belongs to --mode image; add that, or leave {option} out")
    choice = RateChoice(preset=packets.preset, features=packets.features, budget=packets.budget_bytes)
    compute = Compute(dtype=packets.dtype, device=packets.device or "cpu", threads=packets.threads)
    return lambda: TowerEncoder.open(model, choice, compute)


def _check_exist(pictures: list[Path]) -> None:
    for path in pictures:
        if not os.path.lexists(path):  # what is there and cannot be opened is told when it is opened
            raise UseError(f"{path} does not exist; give the path of a picture (JPEG, PNG, WebP, …)")


def _limit(timeout: float) -> float | None:
    if not timeout >= 0:
        raise UseError(f"--timeout must be 0 (no limit) or more seconds, got {timeout:g}")
    return timeout or None


def _begin(
    server: str,
    wait: float | None,
    *,
    token_file: Path | None,
    tls: bool,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> Begin:
    """What opens a session for an encoder."""
    address = _address(server)
    security = client_security(
        token_file=token_file, tls=tls, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key, warn=_warn
    )
    return partial(Session, Target(address=address, security=security), wait_s=_wait(wait), tell=tell)


def _wait(wait: float | None) -> float | None:
    if wait is not None and not wait >= 0:
        raise UseError(f"--wait must be 0 or more seconds, got {wait:g}")
    return wait


def _address(server: str) -> str:
    if split_address(server)[1] == 0:
        raise UseError(f"--server {server!r} has port 0, which nobody listens on; write for instance 127.0.0.1:50061")
    return server


def _warn(text: str) -> None:
    note(f"device-client: {text}")


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Turns what may go wrong into one line on stderr and an exit code; anything else is a defect and shows."""
    try:
        yield
    except BrokenPipeError:  # nobody reads any more: `Program` ends quietly
        raise
    except (ValueError, OSError, EncoderError, TofcError, MemoryError) as error:
        note(f"device-client: {sentence(error)}")
        raise typer.Exit(exit_code(error)) from None
    except RuntimeError as error:  # torch's, of memory that is not there, while a picture is looked at
        if not out_of_memory(error):
            raise
        note(f"device-client: {sentence(MemoryError(str(error)))}")
        raise typer.Exit(exit_code(MemoryError())) from None
    except KeyboardInterrupt:
        note("device-client: stopped")
        raise typer.Exit(INTERRUPTED) from None
