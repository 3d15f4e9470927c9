"""The kinds of codecs that tests run over: one without training for every entropy model, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tofc.codec import CodecWeights
from tofc.codec.fake import fake_weights
from tofc.codec.index.fake import fake_index_weights
from tofc.codec.selective_hyperprior.fake import fake_selective_hyperprior

#: name → a function that makes such a codec, with the arguments D, H, seed, Q and features
KINDS: dict[str, Callable[..., CodecWeights]] = {
    "context": fake_weights,
    "selective hyperprior": fake_selective_hyperprior,
    "selective hyperprior with a transform": partial(fake_selective_hyperprior, M=24),
    "index": fake_index_weights,
}
