"""Export of a trained index codec to the codec's two files, in integers.

Promises that the exported context model is the trained one, rounded and clipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tofc.codec.index.config import IndexConfig
from tofc.codec.index.logits import CODE_BITS
from tofc.codec.index.weights import IndexWeights
from tofc.codec.integer_net import ACTIVATION_BITS, WEIGHT_BITS
from tofc_lab.codec.index.model import CODE_MAX, REACH, IndexModel
from tofc_lab.codec.index.transform import Transform

LOGIT_BITS = 5  # a logit is a multiple of 1/32 bit
LOGIT_RANGE = 21 << LOGIT_BITS  # 2²⁰ falls to 0 within


@torch.no_grad()
def export(
    model: IndexModel,
    fitted: Transform,
    price: Tensor,
    grid_embedding: dict[int, NDArray[np.float16]],
    hidden: int,
    **rates: Any,
) -> IndexWeights:
    """Return the codec's weights. `rates` are rates, presets and the like of `CodecConfig`."""
    config = IndexConfig(
        feature_dim=fitted.analysis.shape[1],
        components=fitted.analysis.shape[0],
        codewords=tuple(model.sizes),
        learned=model.learned_size,
        channels=model.channels,
        context_hidden=model.mid_w.shape[-1],
        reach=REACH,
        qualities=model.qualities,
        hidden=hidden,
        logit_bits=LOGIT_BITS,
        logit_range=LOGIT_RANGE,
        **rates,
    )
    weight, unit = 1 << WEIGHT_BITS, 1 << WEIGHT_BITS + ACTIVATION_BITS
    logit_unit = 1 << CODE_BITS + ACTIVATION_BITS

    def whole(w: Tensor) -> NDArray[np.int16]:
        found: NDArray[np.int16] = (w * weight).round().clamp(-32767, 32767).to(torch.int16).numpy()
        return found

    def bias(b: Tensor) -> NDArray[np.int32]:
        """Round a bias; the runtime rounds activations down, so half a unit is added here."""
        found: NDArray[np.int32] = (b * unit + weight // 2).round().to(torch.int32).numpy()
        return found

    words = torch.cat(
        [
            (model.codewords[first:last] / scale).round().clamp(-CODE_MAX, CODE_MAX)
            for (first, last), scale in zip(model.spans, model.scale, strict=True)
        ]
    )
    learned = (model.learned * (1 << CODE_BITS)).round().clamp(-CODE_MAX, CODE_MAX)
    half = 1 << CODE_BITS + ACTIVATION_BITS - LOGIT_BITS - 1  # of a logit's unit
    steps = np.arange(LOGIT_RANGE) / (1 << LOGIT_BITS)
    return IndexWeights(
        config=config,
        mean=fitted.mean.numpy(),
        analysis=fitted.analysis.numpy(),
        synthesis=fitted.synthesis.numpy(),
        bit_price=price.numpy(),
        scale=model.scale.numpy(),
        codebook=torch.cat([words, learned], dim=1).to(torch.int8).numpy(),
        embed_w=whole(model.embed_w),
        embed_b=bias(model.embed_b),
        around_w=whole(model.around_w),
        before_w=whole(model.before_w),
        own_w=whole(model.own_w),
        first_b=bias(model.first_b),
        mid_w=whole(model.mid_w),
        mid_b=bias(model.mid_b),
        out_w=whole(model.out_w),
        out_b=bias(model.out_b),
        code_b=(model.code_b * logit_unit + half).round().to(torch.int32).numpy(),
        exp2=np.floor(2.0**20 * 2.0**-steps).astype(np.uint32),
        place={int(side): (table * unit).round().to(torch.int32).numpy() for side, table in model.place.items()},
        grid_embedding=grid_embedding,
    )
