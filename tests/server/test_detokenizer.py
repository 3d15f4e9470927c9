"""Text of token ids, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edge_server.detokenizer import IncrementalDetokenizer
from edge_server.fake import decode_bytes


def pieces(stream: IncrementalDetokenizer, ids: Sequence[int]) -> list[str]:
    return [stream.push(one) for one in ids] + [stream.flush()]


@pytest.mark.parametrize("text", ["plain", "größer", "象は🐘です", "👩‍👩‍👧 family", "\N{REPLACEMENT CHARACTER}!", ""])
def test_pieces_are_whole_characters_and_all_of_them(text: str) -> None:
    found = pieces(IncrementalDetokenizer(decode_bytes), text.encode())
    assert "".join(found) == text
    assert all(piece.encode() in text.encode() for piece in found)


def test_an_unfinished_character_is_left_out() -> None:
    assert "".join(pieces(IncrementalDetokenizer(decode_bytes), "ab🐘".encode()[:-1])) == "ab"


def test_bytes_that_are_not_text_are_replaced_once_more_follows() -> None:
    assert "".join(pieces(IncrementalDetokenizer(decode_bytes), b"a\xffb")) == "a\N{REPLACEMENT CHARACTER}b"


def test_a_byte_level_tokenizer() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    text = "zwei Elefanten: 🐘🐘"
    found = pieces(IncrementalDetokenizer(lambda ids: words.decode(list(ids))), words.encode(text).ids)
    assert "".join(found) == text
    assert [piece for piece in found if piece] == list(text)


def test_a_tokenizer_that_drops_the_first_space() -> None:
    names = ["▁is", "▁it", "self", "▁so"]

    def decode(ids: Sequence[int]) -> str:
        return "".join(names[one] for one in ids).replace("▁", " ").removeprefix(" ")

    assert pieces(IncrementalDetokenizer(decode), [1, 2, 0, 3]) == ["it", "self", " is", " so", ""]
