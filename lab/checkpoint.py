"""Writing whole checkpoints, and splitting one into the half of each machine.

Promises that splitting streams: no more than a few megabytes of weights are in memory, whatever the
model's size, and a half appears complete or not at all. Leaves opening both to ``shared.model.checkpoint``.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.model import tensor_files
from shared.model.checkpoint import FORMAT, Checkpoint, CheckpointError, Side
from shared.model.config import SplitConfig, read_json
from shared.model.released_names import DECODER, PROJECTOR, VISION

if TYPE_CHECKING:
    import torch

CODEC = ("codec.json", "codec.safetensors")
#: copied to the server where they exist; no code and no weights
WORDS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


@dataclass(frozen=True, kw_only=True)
class Halves:
    """What a split wrote."""

    device: Path
    server: Path
    model_id: str
    codec_id: str


def write(
    out: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], dtype: torch.dtype | None = None
) -> None:
    """A whole checkpoint: ``config.json`` and released tensors (see ``to_released``), cast to ``dtype``.

    Raises ``CheckpointError`` if what was written does not open.
    """
    from safetensors.torch import save_file

    SplitConfig.parse(config)
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "config.json", config)
    stored = {name: tensor.to(dtype or tensor.dtype).contiguous().clone() for name, tensor in tensors.items()}
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # it is left to its writer alone, but ships
    Checkpoint.open(out)


def split(checkpoint_dir: Path, out: Path) -> Halves:
    """Write ``out/device`` and ``out/server`` from a whole checkpoint with its codec.

    ``out/server`` is also a plain Qwen3 checkpoint, which any engine loads. Raises ``CheckpointError`` if the
    checkpoint is a half itself or incomplete, ``FileExistsError`` if a half is already there.
    """
    whole = Checkpoint.open(checkpoint_dir)
    if whole.side is not None:
        raise CheckpointError(f"{checkpoint_dir} is the {whole.side} half of a model already; split the whole one")
    for side in ("device", "server"):
        if (out / side).exists():
            raise FileExistsError(f"{out / side} exists; remove it or split into another directory")
    ids = {"model_id": whole.model_id, "codec_id": whole.codec_id}
    out.mkdir(parents=True, exist_ok=True)
    device = _half(whole, out, "device", ids)
    server = _half(whole, out, "server", ids)
    return Halves(device=device, server=server, **ids)


def _half(whole: Checkpoint, out: Path, side: Side, ids: dict[str, str]) -> Path:
    partial = out / f".{side}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a split that was interrupted
    partial.mkdir()
    prefix = VISION if side == "device" else DECODER
    tensors = {name: one for name, one in whole.stored.items() if name.startswith(prefix)}
    tensor_files.write(partial / "model.safetensors", tensors)
    if side == "device":
        shutil.copyfile(whole.path / "config.json", partial / "config.json")
    else:
        projector = {name: one for name, one in whole.stored.items() if name.startswith(PROJECTOR)}
        tensor_files.write(partial / "projector.safetensors", projector)
        shutil.copyfile(whole.path / "config.json", partial / "split_config.json")
        _write_json(partial / "config.json", _decoder_config(whole))
        for name in WORDS:
            if (whole.path / name).exists():
                shutil.copyfile(whole.path / name, partial / name)
    for name in CODEC:
        shutil.copyfile(whole.path / name, partial / name)
    _write_json(partial / "split.json", {"format": FORMAT, "side": side, **ids})
    Checkpoint.open(partial, side)
    return partial.rename(out / side)


def _decoder_config(whole: Checkpoint) -> dict[str, Any]:
    """``config.json`` of a plain ``Qwen3ForCausalLM``: the text configuration as it was, named as Qwen3's."""
    text = dict(read_json(whole.path / "config.json")["text_config"])
    text |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    text.pop("auto_map", None)  # names code that is not copied
    text.setdefault("tie_word_embeddings", False)
    stored = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    text["dtype"] = stored.get(whole.stored["model.embed_tokens.weight"].dtype, "float32")
    text.pop("torch_dtype", None)
    return text


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")
