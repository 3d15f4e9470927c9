"""A batch from the command line: from the file of questions to the file of answers, with a progress bar on stderr.

Promises that an error which ends the batch says how far it came and how to resume. Leaves the questions to `batch`
and the file of answers to `batch_out`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from device_client import batch
from device_client.batch_out import open_out
from device_client.encoder import EncoderThread
from device_client.reasoning import Reasoning
from device_client.sampling import Sampling
from device_client.session import Session
from device_client.waiting import stderr_console
from tofc.errors import CallError
from tofc.terminal import note, one_line


class EncoderActivity(ProgressColumn):
    """A column of a batch's progress bar: what the encoder is doing."""

    def __init__(self, encoder: EncoderThread) -> None:
        super().__init__()
        self._encoder = encoder

    def render(self, task: Task) -> Text:
        """Return the text of the column; none at the end of the batch, which needs no encoder any more."""
        return Text("" if task.finished else self._encoder.doing, overflow="ellipsis", no_wrap=True)


async def run(
    file: Path,
    out: Path,
    open_session: Callable[[], Session],
    *,
    resume: bool,
    sampling: Sampling,
    reasoning: Reasoning,
    thinking: bool,
    timeout_s: float | None,
) -> int:
    """Answer the lines of `file` that `out` does not have yet. Returns how many lines failed, earlier ones included.

    The session is opened only if there is a line to answer.
    """
    lines = batch.read_lines(file)
    with open_out(out, lines, questions=file, resume=resume) as answers:
        done, failed = answers.done, answers.failed
        if done == len(lines):
            advice = f"; {failed} of them failed, ask those again from a separate file" if failed else ""
            note(f"{out} holds all {done} answers already{advice}")
            return failed
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        async with open_session() as session:
            with Progress(*columns, EncoderActivity(session.encoder), console=stderr_console()) as progress:
                task = progress.add_task("asking", total=len(lines), completed=done)

                def warn(text: str) -> None:
                    progress.console.print(Text(one_line(text), style="red"), soft_wrap=True)

                try:
                    async for answered in batch.run(
                        session,
                        lines[done:],
                        answers.file,
                        sampling=sampling,
                        reasoning=reasoning,
                        thinking=thinking,
                        timeout_s=timeout_s,
                        warn=warn,
                    ):
                        done += 1
                        failed += not answered
                        progress.advance(task)
                except CallError as error:
                    if not done or not out.is_file():
                        raise
                    advice = f"{done} of {len(lines)} lines are in {out}; --resume continues there"
                    raise type(error)(f"{error} | {advice}", reason=error.reason) from error
    if failed:
        note(f"{failed} of {len(lines)} lines failed; the field error of {out} says why")
    return failed
