"""Turns and pictures → token ids: the checkpoint's chat template and STEP3-VL's layout of image tokens.

Promises that no text of a person ever becomes a control token, whatever it contains, and that each
picture's features find their places in prompt order: crops row by row, the global view last. Leaves
turning ids into embeddings to the server; knows no features, only how many there are.

    <patch_start> n × <im_patch> <patch_end> [<patch_newline> after each row but the last]   each crop
    <im_start> n × <im_patch> <im_end>                                                       the global view
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.model.checkpoint import Checkpoint
from shared.model.config import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IM_PATCH = "<im_patch>"
THINKING_TOKENS = ("<think>", "</think>")
IMAGE_TOKENS = (IM_PATCH, "<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>")


class Grid(Protocol):
    """Rows and columns of crops: a ``ViewPlan``, a ``Layout`` or the wire's ``Picture``."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many features each view of a picture has, in prompt order."""

    rows: int = 0
    columns: int = 0
    crops: tuple[int, ...] = ()
    whole: int

    def __post_init__(self) -> None:
        if len(self.crops) != self.rows * self.columns:
            raise ValueError(f"{len(self.crops)} crops for {self.rows} × {self.columns}; give one count for each")

    @property
    def features(self) -> int:
        """Features of all views: the number of ``<im_patch>`` in the prompt."""
        return sum(self.crops) + self.whole


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side said."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, kw_only=True)
class PromptTokens:
    """``ids`` of a whole prompt and, ascending, the indices [F] in it that features of the pictures replace."""

    ids: list[int]
    patches: NDArray[np.int64]


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerFast:
    """The tokenizer of a whole checkpoint or a server half, checked to know every image token.

    Runs no code of the checkpoint. Raises ``CheckpointError``.
    """
    from transformers import AutoTokenizer, PreTrainedConfig

    if not (checkpoint.path / "tokenizer.json").exists():
        raise CheckpointError(f"{checkpoint.path} has no tokenizer.json; copy the model's tokenizer files there")
    load: Any = AutoTokenizer.from_pretrained
    tokenizer: PreTrainedTokenizerFast = load(
        checkpoint.path,
        config=PreTrainedConfig(),  # else it reads the whole model's, which it has no class for, and says so at length
        local_files_only=True,
        trust_remote_code=False,
    )
    for name in IMAGE_TOKENS:
        token_id(tokenizer, name)
    if token_id(tokenizer, IM_PATCH) != checkpoint.config.image_token_id:
        raise CheckpointError(
            f"{IM_PATCH} is token {token_id(tokenizer, IM_PATCH)} of the tokenizer in {checkpoint.path}, but "
            f"{checkpoint.config.image_token_id} in its configuration; they are of different models"
        )
    if not tokenizer.get_added_vocab().keys().isdisjoint(THINKING_TOKENS):  # what thinks aloud has both
        for name in THINKING_TOKENS:
            token_id(tokenizer, name)
    if not tokenizer.chat_template:
        raise CheckpointError(f"{checkpoint.path} has no chat template; copy the model's chat_template.jinja there")
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, name: str) -> int:
    """The id of a control token by its name. Raises ``CheckpointError`` if the tokenizer has none."""
    found = tokenizer.get_added_vocab().get(name)
    if found is None:
        raise CheckpointError(f"the tokenizer has no token {name}; it is not of a STEP3-VL checkpoint")
    return int(found)


def image_token_ids(
    tokenizer: PreTrainedTokenizerFast, plan: Grid, n_crop_features: Sequence[int], n_global: int
) -> list[int]:
    """The tokens of one picture; ``n_crop_features`` has one count for each of the ``rows × columns`` crops."""
    if len(n_crop_features) != plan.rows * plan.columns:
        raise ValueError(
            f"{len(n_crop_features)} counts of features for {plan.rows} × {plan.columns} crops; give one for each"
        )
    token = {name: token_id(tokenizer, name) for name in IMAGE_TOKENS}
    ids: list[int] = []
    for index, count in enumerate(n_crop_features):
        ids += [token["<patch_start>"], *[token[IM_PATCH]] * count, token["<patch_end>"]]
        row, column = divmod(index, plan.columns)
        if column == plan.columns - 1 and row < plan.rows - 1:
            ids.append(token["<patch_newline>"])
    return [*ids, token["<im_start>"], *[token[IM_PATCH]] * n_global, token["<im_end>"]]


def build(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn], layouts: Sequence[Layout]) -> PromptTokens:
    """The prompt that asks for an answer to ``turns``; the pictures stand before the first user turn's text.

    Raises ``ValueError`` for turns that do not end with a user's.
    """
    if not turns or turns[-1].role != "user":
        raise ValueError("the conversation must end with a user turn: that is what is answered")
    patch = token_id(tokenizer, IM_PATCH)
    pictures = [image_token_ids(tokenizer, one, one.crops, one.whole) for one in layouts]
    ids: list[int] = []
    for kind, piece in _render(tokenizer, turns, len(layouts)):
        if kind == "template":
            ids += _encode(tokenizer, piece)
        elif kind == "text":
            ids += plain_ids(tokenizer, turns[int(piece)].text)
        else:
            ids += pictures[int(piece)]
    return PromptTokens(ids=ids, patches=np.flatnonzero(np.array(ids) == patch))


def plain_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of text that is only text: ``<im_patch>`` in it is eight letters and two brackets."""
    normalizer: Any = tokenizer.backend_tokenizer.normalizer
    if normalizer is not None:  # it could make a control token's name of other characters
        text = normalizer.normalize_str(text)
    names, controls = _controls(tuple(sorted(tokenizer.get_added_vocab().items())))
    ids: list[int] = []
    at = 0
    # a name is cut after its first character: no piece holds a whole one
    while (match := names.search(text, at)) is not None:
        ids += _encode(tokenizer, text[at : match.start() + 1])
        at = match.start() + 1
    ids += _encode(tokenizer, text[at:])
    if not controls.isdisjoint(ids):  # a tokenizer that matches names loosely: letter by letter, none is left
        ids = [one for letter in text for one in _encode(tokenizer, letter)]
    return ids


@lru_cache(maxsize=8)
def _controls(added: tuple[tuple[str, int], ...]) -> tuple[re.Pattern[str], frozenset[int]]:
    long = [(name, number) for name, number in added if len(name) > 1]
    pattern = "|".join(re.escape(name) for name, _ in long) or r"(?!)"
    return re.compile(pattern, re.IGNORECASE), frozenset(number for _, number in long)


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    # the backend directly: the wrapper changes shared settings at each call, and requests are concurrent
    return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids) if text else []


_MARK = re.compile("\ue000(text|picture):(\\d+)\ue001")


def _render(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn], images: int) -> list[tuple[str, str]]:
    """The template around marks: ``("template", text)``, ``("text", turn)``, ``("picture", number)`` in order.

    The template sees marks, never what was said, so it cannot be led astray. Templates of multimodal models
    take lists of parts; those that take only strings get the marks in one.
    """
    from jinja2 import TemplateError

    expected = _expected(turns, images)
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
    shown = [f"\ue000picture:{i}\ue001" for i in range(images)]
    # lists of dictionaries, typed loosely: the tokenizer's annotation knows no lists of parts
    parts: list[Any] = []
    strings: list[Any] = []
    for index, turn in enumerate(turns):
        mark = f"\ue000text:{index}\ue001"
        before = images if index == first else 0
        content = [*[{"type": "image"}] * before, {"type": "text", "text": mark}]
        parts.append({"role": turn.role, "content": content if before or turn.role == "user" else mark})
        strings.append({"role": turn.role, "content": "".join(shown[:before]) + mark})
    said = "leaves out or repeats a turn or a picture of the conversation"
    for messages in (parts, strings):
        try:
            rendered: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError) as error:  # Qwen3's own calls startswith on what has to be a string
            said = f"fails ({error})"
            continue
        pieces = list(_pieces(rendered))
        if [piece for piece in pieces if piece[0] != "template"] == expected:
            return pieces
    raise CheckpointError(f"the chat template {said}; use the chat_template.jinja that was released with the model")


def _expected(turns: Sequence[Turn], images: int) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    placed = False
    for index, turn in enumerate(turns):
        if turn.role == "user" and not placed:
            found += [("picture", str(i)) for i in range(images)]
            placed = True
        found.append(("text", str(index)))
    return found


def _pieces(rendered: str) -> Iterator[tuple[str, str]]:
    at = pictures = 0
    # a template writes <im_patch> for {"type": "image"}
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
