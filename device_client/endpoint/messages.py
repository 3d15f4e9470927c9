"""Chat messages → turns of a conversation, and the pictures that they show.

    [{"role": "user", "content": [text, picture, …]}, …] ─→ Turn(text, places of pictures), …   Media, … in their order

Promises that pictures and texts keep their order, with one exception: where a message begins with a text and ends with
a picture, that text is moved behind the pictures, because models answer questions about what they have seen. Leaves
fetching and opening pictures to `pictures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from device_client.endpoint.errors import invalid
from device_client.endpoint.fields import Fields, checked_text, wrong
from tofc.model.prompt import Turn

SYSTEM = ("system", "developer")
ROLES = (*SYSTEM, "user", "assistant")
TEXTS = ("text", "input_text", "output_text", "refusal")
MOST_UUID = 256  # characters
ORDERS = ("question-last", "as-sent")


@dataclass(frozen=True, kw_only=True)
class Media:
    """A picture of a message: where its bytes are, or the name that it was sent under before."""

    url: str | None
    """A data URL, or the address of a file; None: only `uuid` is given."""
    uuid: str | None
    """The client's name for the picture, by which later requests may show it without its bytes."""
    path: str
    """Of the field, for errors."""


Part = str | Media


def read_messages(messages: Sequence[object], *, order: str = ORDERS[0]) -> tuple[list[Turn], list[Media]]:
    """Return the turns, and the pictures in the order in which the turns show them.

    All system messages become one, the first turn. Raises ApiError.
    """
    if not messages:
        raise invalid("messages", "messages must have at least one message, got none", code="missing_field")
    system: list[str] = []
    turns: list[Turn] = []
    media: list[Media] = []
    for number, value in enumerate(messages):
        message = Fields(value, f"messages[{number}]")
        role = message.text("role")
        if role not in ROLES:
            raise invalid(
                message.path("role"), f"{message.path('role')} must be one of {', '.join(ROLES)}, got {role!r}"
            )
        parts = _parts(message)
        if role != "user":
            shown = next((part for part in parts if isinstance(part, Media)), None)
            if shown is not None:
                raise invalid(
                    shown.path, f"{shown.path}: only messages of the user can show pictures, this is {role}'s"
                )
        if role in SYSTEM:
            system += [part for part in parts if isinstance(part, str)]
            continue
        turn = _turn("user" if role == "user" else "assistant", parts, order)
        if turn.text or turn.pictures:
            turns.append(turn)
        media += [part for part in parts if isinstance(part, Media)]
    if not turns or turns[-1].role != "user":
        raise invalid("messages", "the last message must be the user's, which is then answered")
    text = "\n\n".join(text for text in system if text)
    return ([Turn(role="system", text=text)] if text else []) + turns, media


def _parts(message: Fields) -> list[Part]:
    content = message.raw("content")
    if content is None:
        return []
    if isinstance(content, str):
        return [checked_text(message.path("content"), content)]
    if not isinstance(content, list):
        raise wrong(message.path("content"), "a string or an array of parts", content)
    return [_part(Fields(part, f"{message.path('content')}[{number}]")) for number, part in enumerate(content)]


def _part(part: Fields) -> Part:
    kind = part.text("type")
    if kind in TEXTS:
        name = "refusal" if kind == "refusal" else "text"
        text = part.text(name)
        if text is None:
            raise wrong(part.path(name), "a string", None)
        return text
    if kind != "image_url":
        raise invalid(
            part.path("type"),
            f"{part.path('type')} must be text or image_url, got {kind!r}; this endpoint takes texts and pictures",
            code="unsupported_content",
        )
    uuid = part.text("uuid")
    value = part.raw("image_url")
    path = part.path("image_url")
    if isinstance(value, dict):
        inner = part.object("image_url")
        value, path = inner.text("url"), inner.path("url")
        uuid = uuid or inner.text("uuid")
    elif value is not None and not isinstance(value, str):
        raise wrong(path, "an object with a url, or null beside a uuid", value)
    elif value:
        checked_text(path, value)
    if not value and not uuid:
        raise wrong(path, "a data URL, or null beside a uuid", value)
    if uuid is not None and len(uuid) > MOST_UUID:
        raise invalid(
            part.path("uuid"), f"{part.path('uuid')} must have at most {MOST_UUID} characters, got {len(uuid)}"
        )
    return Media(url=value or None, uuid=uuid, path=path)


def _turn(role: str, parts: list[Part], order: str) -> Turn:
    ends_with_picture = len(parts) > 1 and isinstance(parts[-1], Media)
    if order == ORDERS[0] and ends_with_picture and isinstance(parts[0], str):
        parts = [*parts[1:], parts[0]]
    text, places, after_text = "", [], False
    for part in parts:
        if isinstance(part, Media):
            places.append(len(text))
        else:
            text += "\n" * after_text + part
        after_text = isinstance(part, str)
    return Turn(role="user" if role == "user" else "assistant", text=text, pictures=tuple(places))
