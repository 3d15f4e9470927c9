"""nano's tokenizer: a byte-level BPE of at most a thousand entries with STEP3-VL's special tokens.

Promises the special tokens by their released names, and that decoding gives back any text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tofc_lab.checkpoint.special_tokens import CHAT_TEMPLATE, SPECIAL
from tofc_lab.world import easy_vqa, questions, scene
from tofc_lab.world.objects import NAMES, plural

# Qwen's pre-tokenisation, which makes each digit a token of its own
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus(assets: Path, seed: int = 0, pictures: int = 3000) -> Iterator[str]:
    """Yield questions and answers of both worlds, and every name: alone, after other words and in the plural."""
    rng = np.random.default_rng([seed, 11])
    for _ in range(pictures):
        for question in questions.draw_many(rng, scene.draw_scene(rng, assets), 6):
            yield f"user\n{question.text}\nassistant\n{question.answer}"
    for picture in easy_vqa.pictures("train")[:1500]:
        for text, answer in picture.questions:
            yield f"user\n{text}\nassistant\n{answer}"
    for name in NAMES:
        yield from [name, name.capitalize(), f"a {name}", f"the {name}", plural(name), f"many {plural(name)}"] * 40


def train(assets: Path, out: Path, *, size: int = 1000, seed: int = 0) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and the chat template into `out`."""
    fit(corpus(assets, seed), out, size=size)


def fit(texts: Iterable[str], out: Path, *, size: int, words: Sequence[AddedToken] = ()) -> None:
    """Write a tokenizer of `size` entries for such texts into `out`, and `words` as one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL if t not in {"<|im_end|>", "<|endoftext|>"}],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    if words:
        fast.add_tokens(list(words))
    fast.save_pretrained(out)
