"""The Python client: questions about pictures in a few lines, blocking (`Client`) or with asyncio (`AsyncClient`).

    Client ── LoopThread (an event loop in a thread) ──┐
                                                       ├── Connection ── device_client.Session ═══ server
    AsyncClient ── the event loop of the caller ───────┘       └── LocalServer, for ":local:"

The one package of `tofc` that stands above both halves: it may import `device_client` and `edge_server`, and nothing
else in `tofc` may import it. Promises that both clients have the same methods, options and errors. Leaves encoding,
sending and replacing lost links to `device_client`.
"""

from __future__ import annotations

from device_client.rollouts import Progress, Rollout
from tofc.client.aio import AsyncChat, AsyncClient, AsyncPicture
from tofc.client.answer import Answer, Piece, Usage
from tofc.client.options import AskOptions
from tofc.client.source import PictureSource
from tofc.client.stream import AsyncAnswerStream
from tofc.client.sync import AnswerStream, Chat, Client, Picture

__all__ = [
    "Answer",
    "AnswerStream",
    "AskOptions",
    "AsyncAnswerStream",
    "AsyncChat",
    "AsyncClient",
    "AsyncPicture",
    "Chat",
    "Client",
    "Picture",
    "PictureSource",
    "Piece",
    "Progress",
    "Rollout",
    "Usage",
]
