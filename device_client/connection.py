"""The connection to a server, or to one of several: one link at a time, replaced when it is lost.

Promises that a server which is loading or restarting is waited for as long as the user allows, but not while another
one can be asked; that the time in which a server's model is not ready does not count as a question's; and that traffic
is counted over all links. Leaves one link to `link`, the order of servers to `servers`, and how long to wait to
`server_wait`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from device_client.deadline import Deadline
from device_client.encoder import Encoder
from device_client.link import SESSION_CLOSED, Link, Target
from device_client.meter import Traffic
from device_client.retry_policy import RetryPolicy
from device_client.server_wait import ServerWait
from device_client.servers import Servers, brief, joint_error, named
from tofc.errors import (
    CallError,
    LimitError,
    LinkLostError,
    MismatchError,
    TlsError,
    TokenError,
    UnavailableError,
    UnsupportedError,
)

#: what a server says every time; any other error may pass
UNFIT = (MismatchError, TokenError, TlsError, UnsupportedError)


class Connection:
    """Opens a link when one is needed and there is none. `current` is the last one that was opened."""

    def __init__(
        self,
        servers: Servers,
        encoder: Encoder,
        *,
        policy: RetryPolicy,
        wait_s: float | None,
        log: Callable[[str], None],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.servers = servers
        self.current: Link | None = None
        self.connect_ms = 0.0  # what opening the last link took, handshake included
        self.closed = False
        self._encoder = encoder
        self._policy = policy
        self._wait_s = wait_s
        self._log = log
        self._sleep = sleep
        self._opening = asyncio.Lock()
        self._deadlines: set[Deadline] = set()  # of the questions that are pending
        self._ended_traffic: Traffic | None = Traffic()  # of all links that ended; None where it is not counted
        self._last_ended: Link | None = None  # its traffic is in that sum
        self._unfit: dict[str, CallError] = {}  # servers that will not do, however often they are asked, by address

    @contextmanager
    def deadline(self, timeout_s: float | None) -> Iterator[Deadline]:
        """Yield a deadline that is extended while the server's model is not ready."""
        deadline = Deadline(timeout_s)
        self._deadlines.add(deadline)
        try:
            yield deadline
        finally:
            self._deadlines.discard(deadline)

    async def link(self) -> Link:
        """Return the current link, or open another one if it was lost. Raises as `Link.open` and `ServerWait` do."""
        async with self._opening:
            if self.current is not None and self.current.failure is None:
                return self.current
            wait = ServerWait(
                address=str(self.servers),
                wait_s=self._wait_s,
                reconnecting=self.current is not None,
                connects=self._policy.connects,
            )
            if self.current is not None:
                await self._end(self.current)
            while not self.closed:
                started = time.perf_counter()
                try:
                    link = await self._open()
                except (UnavailableError, LimitError) as error:
                    await self._pause(wait, error, started)
                    continue
                self.current = link
                if self.closed:  # meanwhile
                    await self._end(link)
                    break
                self.connect_ms = (time.perf_counter() - started) * 1e3
                return link
            raise LinkLostError(SESSION_CLOSED)

    async def _open(self) -> Link:
        """Open a link to the first server that takes it. Raises one error for all of them if none does."""
        if not self.servers.several:
            return await self._link_to(self.servers.targets[0])
        last = self.current
        failures = dict(self._unfit)
        order = self.servers.round(None if last is None else last.address, None if last is None else last.failure)
        tries = [brief(target) for target in order if target.address not in self._unfit]
        for target in tries:
            started = time.perf_counter()
            try:
                link = await self._link_to(target)
            except (UnavailableError, LimitError) as error:
                failures[target.address] = error
                patient = next(one for one in order if one.address == target.address)
                if time.perf_counter() - started >= target.connect_s < patient.connect_s:
                    tries.append(patient)
            except CallError as error:
                failures[target.address] = error
                if isinstance(error, UNFIT):
                    self._unfit[target.address] = error
                    self._log(f"{named(target.address, error).message} (this server is not asked again)")
            else:
                if last is not None and last.address != link.address:
                    self._log(f"{last.address} was lost; asking {link.address}")
                return link
        raise joint_error(list(failures.items()))

    async def _link_to(self, target: Target) -> Link:
        return await Link.open(target, self._encoder.model_id, self._encoder.codec_id)

    async def _pause(self, wait: ServerWait, error: UnavailableError | LimitError, started: float) -> None:
        """Sleep until the next try to connect. Raises the error if there is none."""
        longest_s = self._policy.pause_s(wait.tries + 1)
        if error.retry_after_s is not None:
            longest_s = self._policy.busy_pause_s(error.retry_after_s)
        pause_s = wait.next_pause_s(error, time.perf_counter() - started, longest_s)
        if notice := wait.notice(error):
            self._log(notice)
        if wait.pauses_deadlines(error):
            for deadline in self._deadlines:
                deadline.extend(time.perf_counter() - started + pause_s)
        await self._sleep(pause_s)

    def patience_s(self, deadline: Deadline, waited_s: float) -> float | None:
        """Return how long a question that has waited `waited_s` may still wait for a busy server; None: no limit."""
        left_s = deadline.left_s
        if self._wait_s is None:
            return left_s
        return min(self._wait_s - waited_s, math.inf if left_s is None else left_s)

    def traffic(self) -> Traffic | None:
        """Return the bytes on the sockets of all links so far; None where the kernel does not count them."""
        now = Traffic() if self.current in (None, self._last_ended) else self.current.traffic()
        return self._ended_traffic + now if now is not None and self._ended_traffic is not None else None

    async def close(self) -> None:
        """End the current link; no other one is opened."""
        self.closed = True
        if self.current is not None:
            await self._end(self.current)

    async def _end(self, link: Link) -> None:
        await link.close()
        if link is self._last_ended:
            return
        self._ended_traffic = self.traffic()
        self._last_ended = link
