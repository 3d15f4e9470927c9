"""Reading a prompt before all of its views have arrived: prefill beside the upload.

    views that are there, up to the first that is missing ─ prompt so far ─→ engine: one token, which is thrown away

An engine that keeps the keys and values of earlier prompts then reads only the rest when the last view is there.
Promises to use only places that nobody waits for, and that a failure here is not one of the question. Leaves what an
engine keeps to the engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from edge_server.assemble import PictureRows
from edge_server.engine.base import Prompt
from edge_server.engine.sampling import SamplingParams
from edge_server.picture_cache import HeldPicture
from edge_server.runtime import Runtime
from tofc.errors import CallError

log = logging.getLogger(__name__)

ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0.0)

Assemble = Callable[[Sequence[PictureRows]], Prompt | None]  # the prompt so far; runs in a worker thread


def rows_so_far(pictures: Sequence[HeldPicture]) -> list[PictureRows]:
    """Return the views of each picture up to the first view that is missing; after it, none."""
    found: list[PictureRows] = []
    for picture in pictures:
        ready = picture.leading_views if all(one.complete for one in pictures[: len(found)]) else []
        found.append(PictureRows(rows=picture.rows, columns=picture.columns, views=ready))
    return found


@asynccontextmanager
async def reading_ahead(
    runtime: Runtime, client: str, pictures: Sequence[HeldPicture], assemble: Assemble
) -> AsyncIterator[None]:
    """Read ahead while the block waits for views. Ends with the block, after a step that has begun."""
    if not runtime.backend.engine.read_ahead_rows or all(picture.complete for picture in pictures):
        yield
        return
    task = asyncio.create_task(_ReadAhead(runtime, client, pictures, assemble).run())
    try:
        yield
        await task  # every view is there: it ends with its current step, which the prompt would only repeat
    finally:
        task.cancel()


class _ReadAhead:
    def __init__(self, runtime: Runtime, client: str, pictures: Sequence[HeldPicture], assemble: Assemble) -> None:
        self._runtime = runtime
        self._client = client
        self._pictures = pictures
        self._assemble = assemble
        self._read = 0  # rows

    async def run(self) -> None:
        """Read what is there after each view, until all are."""
        read = 0  # views
        try:
            while (missing := next((one for one in self._pictures if not one.complete), None)) is not None:
                ready = sum(len(rows.views) for rows in rows_so_far(self._pictures))
                if ready == read:
                    await missing.wait_for_more()
                    continue
                read = ready
                for release in self._runtime.admission.more(self._client, 1):
                    try:
                        await self._step()
                    finally:
                        release()
        except CallError as error:  # the question meets it too, if it lasts
            log.debug("reading ahead ended: %s", error)
        except Exception:
            log.exception("reading ahead failed")

    async def _step(self) -> None:
        rows = rows_so_far(self._pictures)
        prompt = await asyncio.get_running_loop().run_in_executor(self._runtime.pool, self._assemble, rows)
        engine = self._runtime.backend.engine
        if prompt is None or len(prompt.embeds) - self._read < engine.read_ahead_rows:
            return
        self._read = len(prompt.embeds)
        generation = engine.submit(prompt, ONE_TOKEN)
        try:
            async for _ in generation:
                pass
        finally:
            await generation.aclose()
