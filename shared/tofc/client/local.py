"""A private server in this process, for `Client(":local:")`.

Promises one that nobody else can use (the loopback address, a free port, a random token that only this process knows)
and that leaves nothing behind when it is stopped. Leaves serving to `edge_server`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from device_client.link import Target
from tofc.errors import UsageError
from tofc.install import install
from tofc.rpc.security import ClientSecurity

GRACE_S = 0.5  # for its one session to end; without any, gRPC logs that calls are cancelled

if TYPE_CHECKING:
    from edge_server.server import RunningServer


class LocalServer:
    """A running server; made by `start`."""

    def __init__(self, running: RunningServer, token: str, folder: Path) -> None:
        self._running = running
        self._folder = folder
        self.target = Target(address=running.address, security=ClientSecurity(token=token))

    @classmethod
    async def start(cls, model: Path, *, feature_codec: str, device: str, take_images: bool) -> LocalServer:
        """Load the model with one of its codecs and serve it.

        Raises UsageError where the packages of the server are missing or the model cannot be used.
        """
        token = secrets.token_hex(32)
        folder = Path(tempfile.mkdtemp(prefix="tofc-"))  # for this user alone
        try:
            running = await _start(model, feature_codec, device, take_images, _write(folder / "token", token))
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, ImportError):
                needed = (error.name or "more").partition(".")[0]
                raise UsageError(f'Client(":local:") needs {needed}: {install("server")}') from error
            raise
        return cls(running, token, folder)

    async def stop(self) -> None:
        """Stop the server; its one session should have ended."""
        try:
            await self._running.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


async def _start(model: Path, feature_codec: str, device: str, take_images: bool, token_file: Path) -> RunningServer:
    from edge_server.server import start
    from edge_server.settings import IMAGE_BYTES, IMAGE_PIXELS, ServerSettings, SessionLimits

    limits = SessionLimits(image_bytes=IMAGE_BYTES, image_pixels=IMAGE_PIXELS) if take_images else SessionLimits()
    return await start(
        ServerSettings(
            model=model,
            feature_codec=feature_codec,
            port=0,
            device=device,
            token_file=token_file,
            limits=limits,
            grace_s=GRACE_S,
        )
    )


def _write(path: Path, token: str) -> Path:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    return path
