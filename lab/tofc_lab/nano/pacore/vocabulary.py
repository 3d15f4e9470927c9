"""nano's tokenizer with the words of the synthesis prompt, which its own would spell letter by letter.

    tokenizer.json ─ merges of the template's words, after its own ─→ tokenizer.json, more entries at the end
    decoder ─ a row for each new entry: the mean of the rows that spell it ─→ decoder

Promises that every text of nano's own world is tokenised as before: a word whose merges would change one is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from edge_server.pacore.prompt import synthesis_text

TABLES = ("decoder.model.embed_tokens.weight", "decoder.lm_head.weight")  # a row for each token


def words() -> list[str]:
    """Return the pieces of the synthesis prompt that are to become one token each, without question and messages."""
    text = synthesis_text("\0", ["\0"])
    pieces = re.findall(r" ?[A-Za-z]+|[.:,]?\n+", text)
    return list(dict.fromkeys(one for one in pieces if len(one) > 1))


def extend(source: Path, out: Path, texts: Iterable[str]) -> list[str]:
    """Write the tokenizer of folder `source`, with the template's words, to `out`; return the words that were added.

    `texts`: those that must be tokenised as before.
    """
    original = Tokenizer.from_file(str(source / "tokenizer.json"))
    kept = list(dict.fromkeys(texts))
    before = [one.ids for one in original.encode_batch(kept, add_special_tokens=False)]
    settings: dict[str, Any] = json.loads(original.to_str())
    added = []
    for word in words():
        tried = json.loads(json.dumps(settings))
        _add(tried, word)
        tokenizer = Tokenizer.from_str(json.dumps(tried))
        if [one.ids for one in tokenizer.encode_batch(kept, add_special_tokens=False)] == before:
            settings = tried
            added.append(word)
    PreTrainedTokenizerFast.from_pretrained(source).save_pretrained(out)
    (out / "tokenizer.json").write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")
    return added


def _add(settings: dict[str, Any], word: str) -> None:
    """Append the merges that make one token of `word`."""
    model = settings["model"]
    tokens = Tokenizer.from_str(json.dumps(settings)).encode(word, add_special_tokens=False).tokens
    whole = tokens[0]
    size = max([*model["vocab"].values(), *(one["id"] for one in settings["added_tokens"])]) + 1
    for token in tokens[1:]:
        model["merges"].append([whole, token])
        whole += token
        if whole not in model["vocab"]:
            model["vocab"][whole] = size
            size += 1


def extended_state(state: dict[str, Tensor], old: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return the weights with a row for each new token; `old` are the ids that spelt it before."""
    longer = dict(state)
    for name in TABLES:
        table = state[name]
        rows = [table[list(ids)].mean(0) for ids in old]
        longer[name] = torch.cat([table, torch.stack(rows)]) if rows else table
    return longer


def spelt(source: Path, out: Path) -> list[list[int]]:
    """Return for each token that `out` has and `source` lacks, in order, how `source` spells it."""
    before, after = (Tokenizer.from_file(str(one / "tokenizer.json")) for one in (source, out))
    return [
        list(before.encode(after.decode([number]), add_special_tokens=False).ids)
        for number in range(before.get_vocab_size(), after.get_vocab_size())
    ]
