"""Export of nano's trained parts to a checkpoint in the released format, with tokenizer and the codec `context`.

Promises that the checkpoint opens on both sides and answers as the parts did, up to half precision. Leaves its default
codec to `index_codec`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer, Qwen3Config

from tofc.codec.config import Rate
from tofc.codec.weights import CodecWeights
from tofc.model.config import SplitConfig
from tofc.model.feature_codecs import FOLDER
from tofc.model.released_names import to_released
from tofc_lab.checkpoint.write import write
from tofc_lab.nano import answerer as answering
from tofc_lab.nano import features
from tofc_lab.nano.tower import VISION

if TYPE_CHECKING:
    from tofc_lab.codec.selective_hyperprior import SelectiveHyperprior
#: of the codec with TOFC's selective hyperprior: (features, quality) by ascending bytes, chosen on validation pictures
PUBLISHED_RATES: tuple[Rate, ...] = ((12, 0), (16, 0), (16, 1), (24, 1), (24, 2))
PUBLISHED_PRESETS = {"low": 1, "medium": 3, "high": 4}


def config(vision: dict[str, Any], text: Qwen3Config, tokenizer: Any, *, max_side: int = 1344) -> dict[str, Any]:
    """Return a checkpoint's `config.json`, for views of nano's sizes."""
    text_config = text.to_diff_dict()
    text_config.pop("transformers_version", None)
    text_config["tie_word_embeddings"] = False
    return {
        "architectures": ["StepVLForConditionalGeneration"],
        "model_type": "step_robotics",
        "vision_config": vision,
        "text_config": text_config,
        "understand_projector_stride": 2,
        "projector_bias": False,
        "image_token_id": tokenizer.convert_tokens_to_ids("<im_patch>"),
        "global_size": 336,
        "crop_size": 224,
        "max_side": max_side,
    }


def export(
    out: Path,
    vision: dict[str, Any],
    tower: dict[str, Tensor],
    answerer: answering.Answerer,
    tokenizer: Path,
    codec: CodecWeights | None = None,
    *,
    max_side: int = 1344,
) -> None:
    """Write a whole checkpoint to `out`, weights in half precision; `codec` becomes its codec `context`."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    settings = config(vision, answerer.decoder.config, loaded, max_side=max_side)
    tensors = to_released(
        SplitConfig.parse(settings),
        vision=tower,
        projector=answerer.projector.state_dict(),
        decoder=answerer.decoder.state_dict(),
    )
    write(out, settings, tensors, torch.float16)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer / name, out / name)
    end, pad = (loaded.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>"))
    generation = {"eos_token_id": end, "pad_token_id": pad, "do_sample": False}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    if codec is not None:
        codec.save(out / FOLDER / "context")


def export_run(run: Path, out: Path, *, counted: int = 2400) -> None:
    """Export what a run trained; the codec's tables are counted on the run's first training pictures."""
    from tofc_lab.codec import export as codec_export  # needs compressai, which writing a checkpoint does not
    from tofc_lab.codec.train import CodecRecipe, new_model

    answerer, _ = answering.load(run, 4 * VISION["hidden_size"])
    model = new_model(CodecRecipe(), 4 * VISION["hidden_size"])
    model.load_state_dict(torch.load(run / "codec.pt", weights_only=True))
    views = counted_views(run, counted)
    codec = codec_export.export(model, answerer.grid_embedding(), answerer.grid.embedding_dim, views)
    tower = torch.load(run / "tower.pt", weights_only=True)
    export(out, VISION, tower, answerer, run / "tokenizer", codec)


def counted_views(run: Path, counted: int = 2400) -> list[tuple[NDArray[np.float32], float]]:
    """Return views [N, D] of a run's first training pictures, each with the share of features that merging keeps."""
    folder = features.folder(run)
    world = features.load(folder, "world", "train", counted)
    easy = features.load(folder, "easy", "train", counted // 8)
    large = features.load(folder, "large", "train", counted // 12)
    rng = np.random.default_rng(0)
    pictures = [*world, *easy, *large]
    shares = [1.0 if rng.random() < 0.6 else float(rng.uniform(0.2, 1.0)) for _ in pictures]
    return [(view, share) for one, share in zip(pictures, shares, strict=True) for view in one.views()]


def export_published(
    run: Path, models: Sequence[SelectiveHyperprior], grid_embedding: dict[int, Any], hidden: int, out: Path
) -> None:
    """Write a codec with TOFC's selective hyperprior to `out`, its tables counted on the run's training pictures."""
    from tofc_lab.codec import selective_hyperprior_export  # needs compressai, which writing a checkpoint does not

    codec = selective_hyperprior_export.export(
        models,
        grid_embedding,
        hidden,
        counted_views(run),
        rates=PUBLISHED_RATES,
        presets=PUBLISHED_PRESETS,
        preset="medium",
        crop_features=4,
    )
    codec.save(out)
