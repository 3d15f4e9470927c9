"""The steps of scripted clients as bytes, and mutations of them, structured and blind.

    step      kind and client (1 byte) │ pause (1 byte) │ length (2 bytes) │ request

Promises that `read` makes steps of any bytes, and that it reverses `write`. Leaves performing the steps to `streams`.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from dataclasses import dataclass, replace
from enum import IntEnum
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from edge_server.fake import CORRUPT
from tofc.rpc.picture_id import ID_BYTES
from tofc.v1 import tofc_pb2 as pb

PICTURES = [name.ljust(ID_BYTES, b"\0") for name in (b"one", b"two", b"three")]
MAX_STEPS = 64
NUMBERS = (0, 1, 1, 2, 2, 3, 4, 5, 16, 1024, 2**31 - 1, 2**31, 2**32 - 1)
FLOATS = (0.0, 0.5, 1.0, -1.0, 100.0, 1e30, float("nan"), float("inf"))
TEXTS = ("", "?", "a cat", "größer 🐘", "x" * 300, "\0", "fake-model", "fake-codec")
PACKETS = (b"", b"a", b"view", CORRUPT, b"12345678", b"123456789", bytes(200))


class Kind(IntEnum):
    """The kinds of steps."""

    REQUEST = 0
    WAIT = 1  # `pause` is in seconds
    READ_NOT = 2  # stop reading responses
    READ = 3
    LEAVE = 4  # break the call off


@dataclass(frozen=True)
class Step:
    """An action of one client, after a number of turns of the event loop."""

    client: int  # 0 or 1
    kind: Kind = Kind.REQUEST
    pause: int = 0  # turns of the loop before it
    request: bytes = b""  # perhaps not a valid SessionRequest


def write(steps: list[Step]) -> bytes:
    return b"".join(
        bytes([step.kind << 1 | step.client, step.pause]) + len(step.request).to_bytes(2) + step.request
        for step in steps[:MAX_STEPS]
    )


def read(data: bytes) -> list[Step]:
    steps = []
    while len(data) >= 4 and len(steps) < MAX_STEPS:
        head, pause, size = data[0], data[1] % 64, int.from_bytes(data[2:4])
        kind = Kind(head >> 1) if head >> 1 <= max(Kind) else Kind.REQUEST
        steps.append(Step(head & 1, kind, pause, data[4 : 4 + size]))
        data = data[4 + size :]
    return steps


def request(client: int, pause: int = 0, **fields: Any) -> Step:
    return Step(client, Kind.REQUEST, pause, pb.SessionRequest(**fields).SerializeToString())


def hello(client: int) -> Step:
    return request(client, hello=pb.Hello(client_version="1", model_id="fake-model", codec_id="fake-codec"))


def picture(client: int, ref: int, name: int, rows: int = 0, columns: int = 0, *, want_state: bool = False) -> Step:
    announced = pb.Picture(ref=ref, picture_id=PICTURES[name], rows=rows, columns=columns, want_state=want_state)
    return request(client, pictures=[announced])


def view(client: int, ref: int, index: int = 0, packet: bytes = b"view", views: int = 0) -> Step:
    return request(client, views=[pb.View(ref=ref, index=index, packets=[packet], views=views)])


def ask(client: int, number: int, *refs: int, pause: int = 0, text: str = "a cat?", **more: Any) -> Step:
    return request(client, pause, asks=[pb.Ask(request=number, refs=refs, question=text, **more)])


def sampled(
    client: int, number: int, *refs: int, pause: int = 0, text: str = "cat", deadline_ms: int = 0, **reasoning: Any
) -> Step:
    """Ask a question that is answered from samples."""
    how = pb.Reasoning(**reasoning)
    return ask(client, number, *refs, pause=pause, text=text, deadline_ms=deadline_ms, reasoning=how)


def cancel(client: int, number: int) -> Step:
    return request(client, 3, cancels=[pb.Cancel(request=number)])


def together(*steps: Step) -> Step:
    """Join the parts of several requests into one."""
    return Step(steps[0].client, request=b"".join(step.request for step in steps))


def seeds() -> list[list[Step]]:
    """Return the steps of sessions that follow the protocol, of one client and of two."""
    plain = [hello(0), picture(0, 1, 0), view(0, 1), ask(0, 1, 1), ask(0, 2, 1, pause=9)]
    crops = [hello(0), picture(0, 1, 1, 2, 2), *(view(0, 1, index) for index in (4, 0, 0, 1, 2, 3)), ask(0, 1, 1)]
    pause = Step(0, Kind.WAIT, 1)
    talk = [
        *plain,
        ask(0, 3, text="cat"),
        pause,
        ask(0, 4, 1, text="dog", previous_request=3),
        pause,
        ask(0, 5, previous_request=4),
    ]
    gone = [*plain, picture(0, 2, 1), view(0, 2), picture(0, 3, 2), view(0, 3), ask(0, 3, 1, 2), view(0, 1)]
    shared = [
        hello(0),
        hello(1),
        picture(0, 1, 0, 1, 1),
        picture(1, 7, 0, 1, 1),
        view(0, 1),
        ask(1, 1, 7),
        view(1, 7, 1),
    ]
    slow = [*plain, Step(0, Kind.READ_NOT), ask(0, 3, 1), cancel(0, 3), Step(0, Kind.WAIT, 5), Step(0, Kind.READ)]
    left = [*plain[:3], ask(0, 1, 1), Step(0, Kind.LEAVE, 2)]
    batch = [hello(0), together(picture(0, 1, 0, 1, 1), view(0, 1), view(0, 1, 1), ask(0, 1, 1), cancel(0, 1))]
    batch.append(together(picture(0, 2, 1, want_state=True), picture(0, 3, 0, 1, 1), ask(0, 2, 3), ask(0, 3)))
    late = [*plain[:2], ask(0, 1, 1, deadline_ms=1000), Step(0, Kind.WAIT, 2), view(0, 1)]
    first = {"pictures": [pb.Picture(picture_id=PICTURES[0], rows=1, columns=1)], "asks": [pb.Ask(question="a cat?")]}
    implied = [hello(0), request(0, **first, views=[pb.View(packets=[b"view"] * 2)]), ask(0, 0), view(0, 0, 1)]
    several = [hello(0), picture(0, 1, 1, 2, 2), view(0, 1, 0, b"fourfour", 4), view(0, 1, 4), ask(0, 1, 1)]
    return [plain, crops, talk, gone, shared, slow, left, batch, implied, late, several, *_with_samples()]


def _with_samples() -> list[list[Step]]:
    """Return sessions whose questions are answered from samples."""
    begin = [hello(0), picture(0, 1, 0), view(0, 1)]
    rounds = [*begin, sampled(0, 1, 1, rounds=[4]), sampled(0, 2, rounds=[3, 2], rollouts=True)]
    vote = [*begin, sampled(0, 1, vote=3, rollouts=True), sampled(0, 2, vote=4, token_budget=5, pause=9)]
    late = [*begin[:2], sampled(0, 1, 1, rounds=[2, 2], deadline_ms=1000), Step(0, Kind.WAIT, 2), view(0, 1)]
    wide = [hello(0), hello(1), sampled(0, 1, rounds=[40]), sampled(1, 1, rounds=[24, 8]), cancel(0, 1)]
    slow = [*begin, Step(0, Kind.READ_NOT), sampled(0, 1, rounds=[4], rollouts=True), Step(0, Kind.WAIT, 5)]
    slow += [cancel(0, 1), Step(0, Kind.READ)]
    thought = [*begin, sampled(0, 1, text="a cat?dog", rounds=[3], rollouts=True), sampled(0, 2, vote=2)]
    left = [*begin, sampled(0, 1, rounds=[9]), Step(0, Kind.LEAVE, 2)]
    return [rounds, vote, late, wide, slow, thought, left]


def changed(steps: list[Step], rng: Random, blind: Callable[[bytes], bytes]) -> list[Step]:
    """Make one to four changes: of the order, of a step, or of a request."""
    steps = list(steps)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(steps) + 1)
        if not steps or at == len(steps):
            steps.insert(at, _fresh(rng))
            continue
        step = steps[at]
        match rng.randrange(11):
            case 0:
                del steps[at : at + rng.choice((1, 1, 3))]
            case 1:
                other = rng.randrange(len(steps))
                steps[at], steps[other] = steps[other], step
            case 2:
                steps.insert(rng.randrange(len(steps) + 1), step)
            case 3:
                steps[at:at] = [replace(one, client=rng.randrange(2)) for one in rng.choice(seeds())]
            case 4:
                steps[at] = replace(step, pause=rng.choice((0, 1, 2, 5, 20, 63)))
            case 5:
                steps.insert(at, _fresh(rng))
            case 6:
                steps[at] = replace(step, request=blind(step.request)[:1000])
            case 7:
                steps[at] = replace(step, client=1 - step.client)
            case 8:
                steps[at] = together(step, rng.choice(steps))
            case _:
                steps[at] = replace(step, request=_with_a_field_changed(step.request, rng))
    for client in {step.client for step in steps}:
        if rng.random() < 0.9:  # without it a session is short
            first = next(at for at, step in enumerate(steps) if step.client == client)
            if steps[first] != hello(client):
                steps.insert(first, hello(client))
    return steps[:MAX_STEPS]


def _fresh(rng: Random) -> Step:
    client = rng.randrange(2)
    if rng.random() < 0.2:
        return Step(client, rng.choice(list(Kind)[1:]), rng.choice((0, 1, 5, 63)))
    return rng.choice((
        lambda: hello(client),
        lambda: picture(
            client, *(rng.randrange(n) for n in (4, 3, 3, 3)), want_state=rng.random() < 0.5
        ),
        lambda: view(client, rng.randrange(4), rng.randrange(4), rng.choice(PACKETS)),
        lambda: ask(
            client,
            rng.randrange(4),
            *rng.choices(range(4), k=rng.randrange(3)),
            previous_request=rng.choice((0, 0, 1, 2)),
        ),
        lambda: sampled(
            client,
            rng.randrange(4),
            *rng.choices(range(4), k=rng.randrange(2)),
            deadline_ms=rng.choice((0, 0, 1, 1000)),
            rollouts=rng.random() < 0.5,
            token_budget=rng.choice((0, 0, 1, 7)),
            **rng.choice(({"vote": rng.randrange(5)}, {"rounds": rng.choices(range(6), k=rng.randrange(1, 4))})),
        ),
        lambda: cancel(client, rng.randrange(4)),
    ))()  # fmt: skip


def _with_a_field_changed(request: bytes, rng: Random) -> bytes:
    """Change one field of a request. Bytes that are not a request stay as they are."""
    message = pb.SessionRequest()
    try:
        message.ParseFromString(request)
    except DecodeError:
        return request
    _change(message, rng)
    return message.SerializeToString()


def _change(message: Message, rng: Random) -> None:
    """Change one field of a message or of a message inside it, more often one that is set."""
    present = [field for field, _ in message.ListFields()]
    field = rng.choice(present if present and rng.random() < 0.7 else list(message.DESCRIPTOR.fields))
    several: Any = getattr(message, field.name)
    if isinstance(several, MutableSequence):  # FieldDescriptor.is_repeated is not in every protobuf
        if several and rng.random() < 0.3:
            del several[rng.randrange(len(several))]
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            _change(rng.choice(several) if several and rng.random() < 0.7 else several.add(), rng)
        else:
            several.extend([_value(field, rng)] * rng.choice((1, 1, 2, 10)))
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        inner = getattr(message, field.name)
        inner.SetInParent()
        if inner.DESCRIPTOR.fields:
            _change(inner, rng)
    elif rng.random() < 0.2:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _value(field, rng))


def _value(field: FieldDescriptor, rng: Random) -> Any:
    """Draw a value of the field's type, most often a meaningful one."""
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return rng.choice(TEXTS)
        case FieldDescriptor.TYPE_BYTES:
            return rng.choice((*PACKETS, *PICTURES))
        case FieldDescriptor.TYPE_FLOAT | FieldDescriptor.TYPE_DOUBLE:
            return rng.choice(FLOATS)
        case FieldDescriptor.TYPE_ENUM | FieldDescriptor.TYPE_INT32 | FieldDescriptor.TYPE_INT64:
            return rng.choice((*NUMBERS[:-2], -1))
        case _:
            return rng.choice(NUMBERS)
