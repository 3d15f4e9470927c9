"""Turns and pictures → token ids: the checkpoint's chat template and STEP3-VL's layout of image tokens.

Promises that no user's text ever becomes a control token, whatever it contains, and that features are placed in prompt
order: crops row by row, the global view last. Needs only the number of features of each view. Leaves turning ids into
embeddings to the server.

    <patch_start> n × <im_patch> <patch_end> [<patch_newline> after each row but the last]   each crop
    <im_start> n × <im_patch> <im_end>                                                       the global view
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tofc.errors import CheckpointError, UsageError
from tofc.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IM_PATCH = "<im_patch>"
THINKING_TOKENS = ("<think>", "</think>")
IMAGE_TOKENS = (IM_PATCH, "<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>")


class Grid(Protocol):
    """Anything with rows and columns of crops: a `ViewPlan`, a `PictureLayout`, or the protocol's message `Picture`."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class PictureLayout:
    """How many features each view of a picture has, in prompt order."""

    rows: int = 0
    """Rows of crops."""
    columns: int = 0
    """Columns of crops."""
    crops: tuple[int, ...] = ()
    """Features of each crop, row by row."""
    whole: int
    """Features of the global view."""

    def __post_init__(self) -> None:
        if len(self.crops) != self.rows * self.columns:
            raise UsageError(
                f"crops must have {self.rows} × {self.columns} counts, one for each crop, got {len(self.crops)}"
            )

    @property
    def features(self) -> int:
        """Number of features of all views; the prompt has an `<im_patch>` for each."""
        return sum(self.crops) + self.whole


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Whose message it is."""
    text: str
    """The message."""
    pictures: tuple[int, ...] = ()
    """Where in `text` pictures are shown, ascending, in characters. Pictures are taken in the order of all turns."""

    @property
    def segments(self) -> list[str | None]:
        """The text cut at its pictures, in order; None for each picture, and no empty text beside one."""
        found: list[str | None] = []
        at = 0
        for offset in self.pictures:
            found += [self.text[at:offset]] * (offset > at) + [None]
            at = offset
        return [*found, self.text[at:]] if self.text[at:] or not found else found


@dataclass(frozen=True, kw_only=True)
class PromptTokens:
    """A prompt as token ids, and the places where features of pictures replace embeddings of tokens."""

    ids: list[int]
    """Token ids of the prompt."""
    feature_positions: NDArray[np.int64]
    """Ascending indices into `ids`, one for each feature."""


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a whole checkpoint or a server half, and check that it has every image token.

    Runs no code of the checkpoint. Raises `CheckpointError`.
    """
    from transformers import AutoTokenizer, PreTrainedConfig

    if not (checkpoint.path / "tokenizer.json").exists():
        raise CheckpointError(f"{checkpoint.path} has no tokenizer.json; copy the model's tokenizer files there")
    load: Any = AutoTokenizer.from_pretrained
    tokenizer: PreTrainedTokenizerFast = load(
        checkpoint.path,
        config=PreTrainedConfig(),  # else it would read the model's, for which it has no class, and warn
        local_files_only=True,
        trust_remote_code=False,
    )
    for name in IMAGE_TOKENS:
        token_id(tokenizer, name)
    if token_id(tokenizer, IM_PATCH) != checkpoint.config.image_token_id:
        raise CheckpointError(
            f"{IM_PATCH} is token {token_id(tokenizer, IM_PATCH)} of the tokenizer in {checkpoint.path}, but "
            f"{checkpoint.config.image_token_id} in its configuration; the two belong to different models"
        )
    if not tokenizer.get_added_vocab().keys().isdisjoint(THINKING_TOKENS):  # a reasoning model must have both
        for name in THINKING_TOKENS:
            token_id(tokenizer, name)
    if not tokenizer.chat_template:
        raise CheckpointError(f"{checkpoint.path} has no chat template; copy the model's chat_template.jinja there")
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, name: str) -> int:
    """Return the id of a control token by its name. Raises `CheckpointError` if the tokenizer lacks it."""
    found = tokenizer.get_added_vocab().get(name)
    if found is None:
        raise CheckpointError(f"the tokenizer has no token {name}; use the tokenizer of a STEP3-VL checkpoint")
    return int(found)


def image_token_ids(
    tokenizer: PreTrainedTokenizerFast, plan: Grid, n_crop_features: Sequence[int], n_global: int
) -> list[int]:
    """Return the tokens of one picture with `n_crop_features` features in each crop and `n_global` in the global view.

    Raises `UsageError` unless there is one count for each of the `rows × columns` crops.
    """
    if len(n_crop_features) != plan.rows * plan.columns:
        raise UsageError(
            f"n_crop_features must have {plan.rows} × {plan.columns} counts, one for each crop, got "
            f"{len(n_crop_features)}"
        )
    token = {name: token_id(tokenizer, name) for name in IMAGE_TOKENS}
    ids: list[int] = []
    for index, count in enumerate(n_crop_features):
        ids += [token["<patch_start>"], *[token[IM_PATCH]] * count, token["<patch_end>"]]
        row, column = divmod(index, plan.columns)
        if column == plan.columns - 1 and row < plan.rows - 1:
            ids.append(token["<patch_newline>"])
    return [*ids, token["<im_start>"], *[token[IM_PATCH]] * n_global, token["<im_end>"]]


def build(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn], layouts: Sequence[PictureLayout]) -> PromptTokens:
    """Build the prompt for an answer to `turns`. If no turn has a picture, all come before the first user's text.

    Raises `UsageError` if the last turn is not a user's, or the turns have places for another number of pictures;
    `CheckpointError` for a template that fails or drops a turn.
    """
    if not turns or turns[-1].role != "user":
        raise UsageError("the conversation must end with a user turn, which is then answered")
    turns = _placed(turns, len(layouts))
    patch = token_id(tokenizer, IM_PATCH)
    pictures = [image_token_ids(tokenizer, one, one.crops, one.whole) for one in layouts]
    texts = [piece for turn in turns for piece in turn.segments if piece is not None]
    ids: list[int] = []
    for kind, piece in _render(tokenizer, turns):
        if kind == "template":
            ids += _encode(tokenizer, piece)
        elif kind == "text":
            ids += encode_text(tokenizer, texts[int(piece)])
        else:
            ids += pictures[int(piece)]
    return PromptTokens(ids=ids, feature_positions=np.flatnonzero(np.array(ids) == patch))


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Encode text as ordinary tokens: `<im_patch>` in it becomes letters and brackets, not the control token."""
    normalizer: Any = tokenizer.backend_tokenizer.normalizer
    if normalizer is not None:  # now, because it could turn other characters into a control token's name
        text = normalizer.normalize_str(text)
    names, control_ids = _control_tokens(tuple(sorted(tokenizer.get_added_vocab().items())))
    ids: list[int] = []
    at = 0
    # the text is cut after the first character of each name, so that no piece holds a whole name
    while (match := names.search(text, at)) is not None:
        ids += _encode(tokenizer, text[at : match.start() + 1])
        at = match.start() + 1
    ids += _encode(tokenizer, text[at:])
    if not control_ids.isdisjoint(ids):  # the tokenizer matches other spellings of a name too
        ids = [number for letter in text for number in _encode(tokenizer, letter)]
    return ids


@lru_cache(maxsize=8)
def _control_tokens(added: tuple[tuple[str, int], ...]) -> tuple[re.Pattern[str], frozenset[int]]:
    """Return a pattern of the names of control tokens, and their ids. Names of one character are left out."""
    long = [(name, number) for name, number in added if len(name) > 1]
    pattern = "|".join(re.escape(name) for name, _ in long) or r"(?!)"
    return re.compile(pattern, re.IGNORECASE), frozenset(number for _, number in long)


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    # not by the wrapper, which changes shared settings in each call: requests are concurrent
    return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids) if text else []


_MARK = re.compile("\ue000(text|picture):(\\d+)\ue001")


def _placed(turns: Sequence[Turn], n: int) -> Sequence[Turn]:
    """Return the turns with places for `n` pictures. Raises `UsageError` if they have places for another number."""
    places = sum(len(turn.pictures) for turn in turns)
    if places == n:
        return turns
    if places:
        raise UsageError(f"the turns show {places} pictures, and {n} were given; give as many as are shown")
    first = next(i for i, turn in enumerate(turns) if turn.role == "user")
    return [*turns[:first], replace(turns[first], pictures=(0,) * n), *turns[first + 1 :]]


def _render(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn]) -> list[tuple[str, str]]:
    """Render the chat template; return its pieces in order: ("template", text), ("text", number), ("picture", number).

    The template gets a marker instead of each text, so that no text can influence it. Templates of multimodal models
    take lists of parts; those that take only strings get the markers in one string.
    """
    from jinja2 import TemplateError

    numbers = Counter[str]()
    expected: list[tuple[str, str]] = []
    # lists of dictionaries, typed loosely: the tokenizer's annotation lacks lists of parts
    parts: list[Any] = []
    strings: list[Any] = []
    for turn in turns:
        content: list[Any] = []
        marks = ""
        for segment in turn.segments:
            kind = "picture" if segment is None else "text"
            expected.append((kind, str(numbers[kind])))
            numbers[kind] += 1
            mark = "\ue000{}:{}\ue001".format(*expected[-1])
            content.append({"type": "image"} if segment is None else {"type": "text", "text": mark})
            marks += mark
        parts.append({"role": turn.role, "content": content if turn.pictures or turn.role == "user" else marks})
        strings.append({"role": turn.role, "content": marks})
    problem = "leaves out or repeats a turn or a picture of the conversation"
    for messages in (parts, strings):
        try:
            rendered: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError) as error:  # Qwen3's template calls startswith on the content
            problem = f"fails ({error})"
            continue
        pieces = list(_pieces(rendered))
        if [piece for piece in pieces if piece[0] != "template"] == expected:
            return pieces
    raise CheckpointError(f"the chat template {problem}; use the chat_template.jinja that was released with the model")


def _pieces(rendered: str) -> Iterator[tuple[str, str]]:
    """Cut a rendered template at its markers. For {"type": "image"} a template writes <im_patch>."""
    at = pictures = 0
    for found in re.finditer(f"{_MARK.pattern}|{re.escape(IM_PATCH)}", rendered):
        if found.start() > at:
            yield "template", rendered[at : found.start()]
        if found[1]:
            yield found[1], found[2]
        else:
            yield "picture", str(pictures)
            pictures += 1
        at = found.end()
    if at < len(rendered):
        yield "template", rendered[at:]
