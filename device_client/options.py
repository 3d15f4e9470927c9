"""Options that several commands of `device-client` have: the server, what is sent, and how an answer is drawn.

Promises that each is an environment variable too (TOFC_DEVICE_…). Leaves what they mean to `encoder`, `session`
and `link`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from device_client.picture import ImageForm

FORM = ImageForm()  # of a picture's file where nothing is given
_CHECKPOINT = "the checkpoint's"

Json = Annotated[
    bool,
    typer.Option("--json", envvar="TOFC_DEVICE_JSON", help="For programs: one JSON object an answer on stdout."),
]
Server = Annotated[str, typer.Option(envvar="TOFC_DEVICE_SERVER", help="The edge server.", metavar="HOST:PORT")]
Model = Annotated[
    Path,
    typer.Option(
        "--model", envvar="TOFC_MODEL", help="Checkpoint directory, whole or its device half.", metavar="PATH"
    ),
]
Features = Annotated[
    int | None,
    typer.Option(
        "--features",
        "-n",
        envvar="TOFC_DEVICE_FEATURES",
        help="Features kept of each view at most; fewer are fewer bytes.",
        show_default="the preset's",
        metavar="N",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        envvar="TOFC_DEVICE_PRESET",
        help="How fine packets are; nano has low, medium, high and max.",
        show_default="the codec's",
        metavar="NAME",
    ),
]
Budget = Annotated[
    int | None,
    typer.Option(
        envvar="TOFC_DEVICE_BUDGET_BYTES",
        help="The most that the packets of a picture may take, instead of a preset.",
        show_default=False,
        metavar="B",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        envvar="TOFC_DEVICE_DTYPE",
        help="float32; bfloat16, half the memory, slow on a CPU without it; int8, half of that again, on CPUs.",
        show_default="as stored",
        metavar="TYPE",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        envvar="TOFC_DEVICE_ACCELERATOR",
        help="What the tower computes on: cpu, cuda, cuda:1, …",
        show_default="cpu",
        metavar="DEVICE",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        envvar="TOFC_DEVICE_THREADS",
        help="Of the tower on a CPU.",
        show_default="OMP_NUM_THREADS, else one a core",
        metavar="N",
    ),
]

Mode = Annotated[
    str,
    typer.Option(
        envvar="TOFC_DEVICE_MODE",
        help="features: packets. image: a compressed picture, for comparison; the server then runs the tower.",
        metavar="MODE",
    ),
]
FileCodec = Annotated[
    str | None,
    typer.Option(
        "--codec",
        envvar="TOFC_DEVICE_CODEC",
        help="Of --mode image: jpeg, webp, avif or jxl.",
        show_default=FORM.codec,
        metavar="CODEC",
    ),
]
FileQuality = Annotated[
    int | None,
    typer.Option(
        "--quality",
        envvar="TOFC_DEVICE_QUALITY",
        help="Of --mode image: 1 to 100, on the codec's own scale.",
        show_default=str(FORM.quality),
        metavar="Q",
    ),
]
FileScale = Annotated[
    float | None,
    typer.Option(
        "--scale",
        envvar="TOFC_DEVICE_SCALE",
        help="Of --mode image: sides are multiplied by it first; at most 1.",
        show_default=str(FORM.scale),
        metavar="S",
    ),
]
MaxTokens = Annotated[
    int,
    typer.Option(
        envvar="TOFC_DEVICE_MAX_TOKENS",
        help="Longest answer, thinking included; 0: the server's default.",
        metavar="N",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        envvar="TOFC_DEVICE_TEMPERATURE",
        help="0: always the likeliest word.",
        show_default=_CHECKPOINT,
        metavar="T",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        envvar="TOFC_DEVICE_TOP_P",
        help="Draw among the likeliest words that have this share together.",
        show_default=_CHECKPOINT,
        metavar="P",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        envvar="TOFC_DEVICE_TOP_K",
        help="Draw among so many of the likeliest words; 0: among all.",
        show_default=_CHECKPOINT,
        metavar="K",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        envvar="TOFC_DEVICE_SEED", help="What is drawn is the same again.", show_default="chance", metavar="N"
    ),
]
ShowThinking = Annotated[
    bool,
    typer.Option(
        "--show-thinking",
        envvar="TOFC_DEVICE_SHOW_THINKING",
        help="What the model thinks before it answers: on stderr, or as a field thinking of JSON.",
    ),
]
TokenFile = Annotated[
    Path | None, typer.Option(envvar="TOFC_DEVICE_TOKEN_FILE", help="File with the server's token.", metavar="PATH")
]
Tls = Annotated[bool, typer.Option("--tls", envvar="TOFC_DEVICE_TLS", help="TLS, trusting the system's authorities.")]
TlsCa = Annotated[
    Path | None,
    typer.Option(envvar="TOFC_DEVICE_TLS_CA", help="TLS, trusting this authority (PEM).", metavar="PATH"),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        envvar="TOFC_DEVICE_TLS_CERT", help="This device's certificate, if the server asks (PEM).", metavar="PATH"
    ),
]
TlsKey = Annotated[Path | None, typer.Option(envvar="TOFC_DEVICE_TLS_KEY", help="Its key (PEM).", metavar="PATH")]
Timeout = Annotated[
    float,
    typer.Option(
        envvar="TOFC_DEVICE_TIMEOUT",
        help="Seconds for each answer, from when the server is ready; 0: no limit.",
        metavar="S",
    ),
]
Wait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        envvar="TOFC_DEVICE_WAIT",
        help="Seconds to wait for a server that is not there yet, loads its model or is full; 0: none.",
        show_default="as long as it loads its model, else none",
        metavar="S",
    ),
]
