"""The command that runs a public benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tofc.model.feature_codecs import DEFAULT
from tofc.terminal import note, say
from tofc_lab.commands.options import Device, FeatureCodec, writable

app = typer.Typer()


@app.command(rich_help_panel="Public benchmarks (docs/benchmarks.md)")
def bench(
    name: Annotated[
        str,
        typer.Argument(
            metavar="SET", help="RealWorldQA, MME, AI2D, MMBench, MMStar, ScienceQA or MMMU.", show_default=False
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(help="Its files: a folder of parquet as lmms-eval reads it, or VLMEvalKit's TSV file."),
    ],
    rules: Annotated[
        str, typer.Option(help="Whose prompts and scoring: lmms-eval or vlmevalkit.", metavar="RULES")
    ] = "lmms-eval",
    model: Annotated[
        Path | None, typer.Option(help="Folder of a whole checkpoint.", show_default="nano; with --endpoint none")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Ask this endpoint, for instance http://127.0.0.1:8080/v1, not a model in this process."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="The endpoint's API key.", envvar=["TOFC_LAB_BENCH_API_KEY", "OPENAI_API_KEY"])
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--json", help="JSON file to write, with every answer; an interrupted run resumes.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the files.", show_default="the set's")] = None,
    limit: Annotated[int | None, typer.Option(help="Ask the first N questions only.", metavar="N")] = None,
    parallel: Annotated[int, typer.Option(help="Questions asked at a time.", metavar="N")] = 8,
    packets_only: Annotated[
        bool, typer.Option("--no-uncompressed", help="Do not also ask with uncompressed features, for the share.")
    ] = False,
    preset: Annotated[str | None, typer.Option(help="Preset of the packets.", show_default="the codec's")] = None,
    feature_codec: FeatureCodec = DEFAULT,
    device: Device = "cpu",
) -> None:
    """Score a model on one of seven public benchmarks, through packets, as lmms-eval or VLMEvalKit does. Resumable."""
    from tofc_lab.bench.report import lines
    from tofc_lab.bench.run import Job, run

    job = Job(
        name=name,
        data=data,
        rules=rules,
        model=model,
        endpoint=endpoint,
        api_key=api_key,
        out=None if out is None else writable(out),
        split=split,
        limit=limit,
        parallel=parallel,
        uncompressed=not packets_only,
        preset=preset,
        feature_codec=feature_codec,
        device=device,
    )
    try:
        with _bars() as counted:
            found = run(job, counted)
    except KeyboardInterrupt:
        if out is not None:
            note(f"interrupted; the same command resumes with the answers in {out}.part")
        raise
    for line in lines(found):
        say(line)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows on stderr how many questions of each way are answered."""
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as shown:
        bars: dict[str, TaskID] = {}

        def counted(way: str, done: int, total: int) -> None:
            if way not in bars:
                bars[way] = shown.add_task(way, total=total)
            shown.update(bars[way], completed=done)

        yield counted
