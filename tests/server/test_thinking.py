"""Thinking and answer, told apart by token ids."""

from collections.abc import Sequence

import pytest

from edge_server.fake import decode_bytes
from edge_server.thinking import Marks, Speech

BEGIN, END = 1, 2  # as bytes: control characters that no text here holds
MARKS = Marks(begin=BEGIN, end=END)
T, E = "\x01", "\x02"


def heard(text: str, marks: Marks | None = MARKS, *, inside: bool = False) -> tuple[str, str, Speech]:
    """(thinking, answer) as a client that obeys every part has them, and the speech."""
    speech = Speech(decode_bytes, marks, inside=inside)
    parts = [part for one in text.encode() for part in speech.push(one)] + speech.finish()
    said: list[tuple[bool, str]] = []
    for part in parts:
        if part.anew:
            assert any(not thinking for thinking, _ in said), "nothing was given that could be withdrawn"
            said = [(True, one) for _, one in said]
        assert part.text or part.anew
        said.append((part.thinking, part.text))
    thinking, answer = ("".join(one for kind, one in said if kind is wanted) for wanted in (True, False))
    assert not set(thinking + answer) & {T, E}
    return thinking, answer, speech


@pytest.mark.parametrize(
    ("text", "inside", "thinking", "answer", "thought"),
    [
        ("plain", False, "", "plain", 0),
        ("\n", False, "", "\n", 0),
        ("\n\nplain", False, "", "\n\nplain", 0),
        ("", False, "", "", 0),
        (f"why{E}42", True, "why", "42", 4),
        (f"\nwhy\n{E}\n\n42\n", True, "why\n", "42\n", 6),
        (f"{E}42", True, "", "42", 1),
        (f"{T}why{E}42", False, "why", "42", 5),
        (f"\n{T}why{E}42", False, "why", "42", 6),
        (f"{T}why{E}42", True, "why", "42", 5),  # begun twice
        (f"why{E}42", False, "why", "42", 4),  # never begun
        (f"why{E}no{E}42", True, "whyno", "42", 7),
        (f"why{E}{E}42", True, "why", "42", 5),
        (f"{T}a{E}b{T}c{E}d", False, "abc", "d", 7),
        (f"{T}a{E}b{T}c", False, "ac", "b", 5),  # thinks on after its answer
        (f"{T}a{E}", False, "a", "", 3),
        (f"größer{E}象🐘", True, "größer", "象🐘", 9),
    ],
)
def test_the_answer_follows_the_last_end_of_thinking(
    text: str, inside: bool, thinking: str, answer: str, thought: int
) -> None:
    found, said, speech = heard(text, inside=inside)
    assert (found, said) == (thinking, answer)
    assert (speech.tokens, speech.thinking_tokens, speech.unanswered) == (len(text.encode()), thought, False)


@pytest.mark.parametrize(("text", "inside"), [("why", True), (f"{T}why", False), (f"w{T}hy", False), ("", True)])
def test_thinking_that_never_ends_is_no_answer(text: str, inside: bool) -> None:
    thinking, answer, speech = heard(text, inside=inside)
    assert (thinking, answer, speech.unanswered) == (text.replace(T, ""), "", True)
    assert speech.thinking_tokens == speech.tokens == len(text)


def test_a_tokenizer_without_marks_has_no_thinking() -> None:
    assert Marks.of({"<think>": 5}) is None and Marks.of({"</think>": 5}) is None
    assert Marks.of({"<think>": 5, "</think>": 6, "<|im_end|>": 2}) == Marks(begin=5, end=6)
    speech = Speech(decode_bytes, None)
    parts = [speech.push(one) for one in b"\na\2b"]
    assert [part.text for few in parts for part in few] == ["\n", "a", "\2", "b"] and speech.thinking_tokens == 0


def test_answers_come_as_they_are_made() -> None:
    speech = Speech(decode_bytes, MARKS)
    assert [[part.text for part in speech.push(one)] for one in b"ab"] == [["a"], ["b"]]


def test_an_unfinished_character_before_a_mark_stays_out() -> None:
    speech = Speech(decode_bytes, MARKS, inside=True)
    data = "a🐘".encode()[:-1] + bytes([END]) + b"b"
    parts = [part for one in data for part in speech.push(one)] + speech.finish()
    assert [(part.text, part.thinking) for part in parts] == [("a", True), ("b", False)]


@pytest.mark.parametrize(
    ("prompt", "left_open"),
    [(b"?\1", True), (b"?\1\n \n", True), (b"?\1\n\2\n\n", False), (b"?\1a", False), (b"?", False), (b"\n", False)],
)
def test_a_prompt_that_ends_with_the_beginning_of_thinking(prompt: bytes, left_open: bool) -> None:
    assert MARKS.left_open(prompt, decode_bytes) is left_open


def test_what_a_tokenizer_shows_as_nothing_is_no_white_space() -> None:
    def decode(ids: Sequence[int]) -> str:  # as one that leaves out special tokens
        return decode_bytes([one for one in ids if one != 7])

    assert not MARKS.left_open(b"\1\n\7\n", decode)
