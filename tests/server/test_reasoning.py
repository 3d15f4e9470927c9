"""Thinking and answer are separated by token ids."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edge_server.fake import decode_bytes
from edge_server.reasoning import ReasoningParser, ThinkTokens

BEGIN, END = 1, 2  # as bytes: control characters that no text here holds
THINK_TOKENS = ThinkTokens(begin=BEGIN, end=END)
T, E = "\x01", "\x02"


def parsed(
    text: str, think_tokens: ThinkTokens | None = THINK_TOKENS, *, inside: bool = False
) -> tuple[str, str, ReasoningParser]:
    """Return (thinking, answer) as a client collects them from the deltas, and the parser."""
    parser = ReasoningParser(decode_bytes, think_tokens, inside=inside)
    deltas = [delta for one in text.encode() for delta in parser.push(one)] + parser.finish()
    pieces: list[tuple[bool, str]] = []
    for delta in deltas:
        if delta.restart:
            assert any(not thinking for thinking, _ in pieces), "there was no answer to withdraw"
            pieces = [(True, one) for _, one in pieces]
        assert delta.text or delta.restart
        pieces.append((delta.thinking, delta.text))
    thinking, answer = ("".join(one for kind, one in pieces if kind is wanted) for wanted in (True, False))
    assert not set(thinking + answer) & {T, E}
    return thinking, answer, parser


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
        (f"{T}why{E}42", True, "why", "42", 5),  # started twice
        (f"why{E}42", False, "why", "42", 4),  # never started
        (f"why{E}no{E}42", True, "whyno", "42", 7),
        (f"why{E}{E}42", True, "why", "42", 5),
        (f"{T}a{E}b{T}c{E}d", False, "abc", "d", 7),
        (f"{T}a{E}b{T}c", False, "ac", "b", 5),  # starts to think again after its answer
        (f"{T}a{E}", False, "a", "", 3),
        (f"größer{E}象🐘", True, "größer", "象🐘", 9),
    ],
)
def test_the_answer_follows_the_last_end_of_thinking(
    text: str, inside: bool, thinking: str, answer: str, thought: int
) -> None:
    found_thinking, found_answer, parser = parsed(text, inside=inside)
    assert (found_thinking, found_answer) == (thinking, answer)
    assert (parser.tokens, parser.thinking_tokens, parser.unanswered) == (len(text.encode()), thought, False)


@pytest.mark.parametrize(("text", "inside"), [("why", True), (f"{T}why", False), (f"w{T}hy", False), ("", True)])
def test_thinking_that_never_ends_is_not_an_answer(text: str, inside: bool) -> None:
    thinking, answer, parser = parsed(text, inside=inside)
    assert (thinking, answer, parser.unanswered) == (text.replace(T, ""), "", True)
    assert parser.thinking_tokens == parser.tokens == len(text)


def test_a_tokenizer_without_think_tokens_has_no_thinking() -> None:
    assert ThinkTokens.of({"<think>": 5}) is None and ThinkTokens.of({"</think>": 5}) is None
    assert ThinkTokens.of({"<think>": 5, "</think>": 6, "<|im_end|>": 2}) == ThinkTokens(begin=5, end=6)
    parser = ReasoningParser(decode_bytes, None)
    deltas = [parser.push(one) for one in b"\na\2b"]
    assert [delta.text for few in deltas for delta in few] == ["\n", "a", "\2", "b"] and parser.thinking_tokens == 0


def test_text_is_returned_with_its_token() -> None:
    parser = ReasoningParser(decode_bytes, THINK_TOKENS)
    assert [[delta.text for delta in parser.push(one)] for one in b"ab"] == [["a"], ["b"]]


def test_an_unfinished_character_before_a_think_token_is_left_out() -> None:
    parser = ReasoningParser(decode_bytes, THINK_TOKENS, inside=True)
    data = "a🐘".encode()[:-1] + bytes([END]) + b"b"
    deltas = [delta for one in data for delta in parser.push(one)] + parser.finish()
    assert [(delta.text, delta.thinking) for delta in deltas] == [("a", True), ("b", False)]


@pytest.mark.parametrize(
    ("prompt", "left_open"),
    [(b"?\1", True), (b"?\1\n \n", True), (b"?\1\n\2\n\n", False), (b"?\1a", False), (b"?", False), (b"\n", False)],
)
def test_a_prompt_that_leaves_thinking_open(prompt: bytes, left_open: bool) -> None:
    assert THINK_TOKENS.left_open(prompt, decode_bytes) is left_open


def test_a_token_that_decodes_to_nothing_is_not_white_space() -> None:
    def decode(ids: Sequence[int]) -> str:  # as one that leaves out special tokens
        return decode_bytes([one for one in ids if one != 7])

    assert not THINK_TOKENS.left_open(b"\1\n\7\n", decode)
