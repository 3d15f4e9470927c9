"""The servers of a device: which one it asks, and which one next.

    identity of the device, addresses ─ rendezvous hashing ─→ order; after a loss: the same one briefly, then the others

Promises that a device asks the same server every time while it can, so that pictures which that server keeps are not
sent again; that many devices are spread evenly; and that one server less moves only the devices that asked it. Leaves
connecting to `connection`.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

from device_client.link import Target
from device_client.server_wait import HANDSHAKES, NOT_READY
from tofc.errors import CallError, LimitError, UnavailableError, UsageError

#: reasons that only concern one server, and for longer than a moment: the others are asked first
LEAVING = frozenset({"STOPPING", "ENGINE_LOST", "LOADING", "TOO_MANY_SESSIONS"})
BRIEFLY_S = 5.0  # within which a server must answer before the next one is asked; those that did not get a second try


def device_identity(token: str | None) -> str:
    """Return what a device is known by: its host's name and its token, which both stay."""
    return f"{socket.gethostname()} {token or ''}"


def ranked(targets: Sequence[Target], device: str) -> list[Target]:
    """Return the targets in the order of rendezvous hashing (highest random weight) for a device.

    >>> here = [Target(address=f"edge{number}:50061") for number in (1, 2, 3)]
    >>> [one.address for one in ranked(here, "kitchen")] == [one.address for one in ranked(here[::-1], "kitchen")]
    True
    """

    def weight(target: Target) -> bytes:
        return hashlib.blake2b(target.address.encode(), key=hashlib.sha256(device.encode()).digest()).digest()

    return sorted(targets, key=weight, reverse=True)


@dataclass(frozen=True, kw_only=True)
class Servers:
    """The targets of one device, in its order. Raises UsageError for none, or one that is given twice."""

    targets: tuple[Target, ...]

    def __post_init__(self) -> None:
        addresses = [target.address for target in self.targets]
        if not addresses:
            raise UsageError("give at least one server, for instance --server 127.0.0.1:50061")
        for address in addresses:
            if addresses.count(address) > 1:
                raise UsageError(f"--server {address} is given {addresses.count(address)} times; name each server once")

    @classmethod
    def of(cls, targets: Target | Sequence[Target], device: str | None = None) -> Servers:
        """Rank the targets for a device; None: this one."""
        if isinstance(targets, Target):
            return cls(targets=(targets,))
        token = targets[0].security.token if targets else None
        return cls(targets=tuple(ranked(targets, device_identity(token) if device is None else device)))

    @property
    def several(self) -> bool:
        """Whether there is a choice."""
        return len(self.targets) > 1

    def __str__(self) -> str:
        return " or ".join(target.address for target in self.targets)

    def round(self, last: str | None, failure: Exception | None) -> list[Target]:
        """Return the order of the next tries to connect.

        `last`: the address of the link before, which ended with `failure`. A link may be lost while its server lives,
        so that server is asked first, unless it said that it cannot serve.
        """
        if not self.several:
            return list(self.targets)
        leaving = getattr(failure, "reason", "") in LEAVING
        again = [target for target in self.targets if target.address == last]
        others = [target for target in self.targets if target.address != last]
        return [*others, *again] if leaving else [*again, *others]


def brief(target: Target) -> Target:
    """Return the target with a short time to connect."""
    return replace(target, connect_s=min(target.connect_s, BRIEFLY_S))


def joint_error(failures: Sequence[tuple[str, CallError]]) -> CallError:
    """Return one error for all servers that were tried: the most hopeful one, with the messages of all.

    Waiting helps most where a model is loading or comes back, then where too many devices come at once, then where a
    server is full, then where none answers.
    """
    if len(failures) == 1:
        return failures[0][1]

    def hope(error: CallError) -> int:
        kinds = (
            error.reason in NOT_READY,
            error.reason == HANDSHAKES,
            isinstance(error, LimitError),
            isinstance(error, UnavailableError),
        )
        return kinds.index(True) if any(kinds) else len(kinds)

    best = min((error for _, error in failures), key=hope)
    messages = "; ".join(named(address, error).message for address, error in failures)
    return type(best)(f"no server can be used: {messages}", reason=best.reason, retry_after_s=best.retry_after_s)


def named(address: str, error: CallError) -> CallError:
    """Return the error with its server's address in the message."""
    if address in error.message:
        return error
    return type(error)(f"{address}: {error.message}", reason=error.reason, retry_after_s=error.retry_after_s)
