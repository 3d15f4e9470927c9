"""Options that several commands of `device-client` have: the server, and how an answer is drawn.

Promises that each is an environment variable too (TOFC_DEVICE_…). Leaves what they mean to `session` and `link`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_CHECKPOINT = "the checkpoint's"

Server = Annotated[str, typer.Option(envvar="TOFC_DEVICE_SERVER", help="The edge server.", metavar="HOST:PORT")]
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
Timeout = Annotated[
    float, typer.Option(envvar="TOFC_DEVICE_TIMEOUT", help="Seconds for each answer; 0: no limit.", metavar="S")
]
