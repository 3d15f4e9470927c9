"""Writing whole checkpoints, and splitting one into the half of each machine.

    model-*.safetensors ─ names, shapes, types checked ─ hashed ─┬─ vision_model.* ──────────── device/
    config, tokenizer, codec                                     └─ vit_large_projector, rest ─ server/

Promises that splitting streams: no more than a few megabytes of weights are in memory, whatever the model's size;
that a half appears complete or not at all; and that an interrupted split goes on with the next file. Leaves
opening both to ``shared.model.checkpoint``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import shards
from shared.codec.weights import CodecWeights
from shared.model import tensor_files
from shared.model.checkpoint import FORMAT, Checkpoint, CheckpointError, Side, check_codec_model, codec_hash, model_hash
from shared.model.config import SplitConfig, read_json
from shared.model.prompt import load_tokenizer
from shared.model.released_names import DECODER, PROJECTOR, VISION
from shared.model.room import need_disk
from shared.model.tensor_files import StoredTensor

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
SUMS = "SHA256SUMS"
SHARD = 4 << 30  # bytes; what an interruption loses at most
SIDES: tuple[Side, ...] = ("device", "server")
#: hears what is being done, how many bytes of it are, and how many there are
Tell = Callable[[str, int, int], None]


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


def split(
    checkpoint_dir: Path,
    out: Path,
    *,
    codec: Path | None = None,
    shard_bytes: int = SHARD,
    tell: Tell = lambda what, done, total: None,
) -> Halves:
    """Write ``out/device`` and ``out/server`` from a whole checkpoint and a codec (in ``codec``, else beside it).

    ``out/server`` is also a plain Qwen3 checkpoint, which any engine loads. Halves of the same model that are there
    already stay, with the codec replaced if it is another. Raises ``CheckpointError`` if the checkpoint is a half
    itself, incomplete or of another model than the codec, ``FileExistsError`` if another model's half is there,
    ``RoomError`` if the disk is too small; all of them before anything is copied.
    """
    whole = Checkpoint.open(checkpoint_dir)
    if whole.side is not None:
        raise CheckpointError(f"{checkpoint_dir} is the {whole.side} half of a model already; split the whole one")
    load_tokenizer(whole)
    codec = codec or whole.path
    codec_id = codec_hash(codec)
    _check_codec(codec, whole.config)
    here = [side for side in SIDES if not (out / side).exists()]
    size = sum(_size(part) for side in here for part in _parts(whole, side).values())
    need_disk(size, out, "the split", over=[file for side in here for file in (out / f".{side}.partial").glob("*")])
    model_id = _identify(whole, out, tell)
    check_codec_model(codec, model_id)
    for side in SIDES:
        if side not in here and (found := read_json(out / side / "split.json").get("model_id")) != model_id:
            raise FileExistsError(
                f"{out / side} holds half of the model {found}, and this is {model_id}; remove it or split into "
                "another directory"
            )
    ids = {"model_id": model_id, "codec_id": codec_id}
    for side in SIDES:
        if side in here:
            _half(whole, codec, out, side, ids, shard_bytes, tell)
        elif read_json(out / side / "split.json").get("codec_id") != codec_id:
            _put_codec(codec, out / side, side, ids)
    (out / ".split.json").unlink()
    return Halves(device=out / "device", server=out / "server", **ids)


def _check_codec(codec: Path, config: SplitConfig) -> None:
    sizes = CodecWeights.load(codec).config  # all of it: what is damaged is found before gigabytes are copied
    if (sizes.feature_dim, sizes.hidden) != (config.feature_dim, config.hidden):
        raise CheckpointError(
            f"the codec in {codec} is of a model with features of {sizes.feature_dim} and a decoder {sizes.hidden} "
            f"wide, this one has {config.feature_dim} and {config.hidden}; train one for it (tofc-lab train-codec)"
        )


def _identify(whole: Checkpoint, out: Path, tell: Tell) -> str:
    """The model's id, which takes reading all of it: noted in ``out``, for the case of an interruption."""
    files = sorted({one.file for one in whole.stored.values()})
    source = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    note = out / ".split.json"
    if note.exists() and (noted := read_json(note)).get("source") == source:
        return str(noted["model_id"])
    for side in SIDES:  # of a split of something else
        shutil.rmtree(out / f".{side}.partial", ignore_errors=True)
    found = model_hash(whole.stored, _counter(tell, "hashing", _size(whole.stored)))
    out.mkdir(parents=True, exist_ok=True)
    _write_json(note, {"source": source, "model_id": found})
    return found


def _parts(whole: Checkpoint, side: Side) -> dict[str, dict[str, StoredTensor]]:
    """What a side gets: ``model`` in shards, ``projector`` in a file of its own."""
    prefixes: dict[str, str | tuple[str, ...]]
    prefixes = {"model": VISION} if side == "device" else {"model": DECODER, "projector": PROJECTOR}
    kept = {name: one for name, one in whole.stored.items() if not (whole.config.tied and name == "lm_head.weight")}
    return {
        part: {name: kept[name] for name in sorted(kept) if name.startswith(prefix)}
        for part, prefix in prefixes.items()
    }


def _half(
    whole: Checkpoint, codec: Path, out: Path, side: Side, ids: dict[str, str], shard_bytes: int, tell: Tell
) -> None:
    partial = out / f".{side}.partial"
    partial.mkdir(exist_ok=True)
    parts = _parts(whole, side)
    sizes = {name: one.end - one.start for name, one in parts["model"].items()}
    files = shards.plan(sizes, shard_bytes)
    tensors = {file: {name: parts["model"][name] for name in names} for file, names in files.items()}
    if "projector" in parts:
        tensors["projector.safetensors"] = parts["projector"]
    advance = _counter(tell, side, sum(map(_size, parts.values())))
    sums = _read_sums(partial)
    for file, group in tensors.items():
        if file in sums and (partial / file).exists():
            advance(_size(group))
            continue
        sums[file] = tensor_files.write(partial / file, group, advance)
        _write_sums(partial, sums)
    if len(files) > 1 or side == "server":  # without one, vLLM takes every .safetensors for a part of the decoder
        _write_json(partial / shards.INDEX, shards.index(files, sizes))
    if side == "device":
        shutil.copyfile(whole.path / "config.json", partial / "config.json")
    else:
        shutil.copyfile(whole.path / "config.json", partial / "split_config.json")
        _write_json(partial / "config.json", _decoder_config(whole))
        for name in WORDS:
            if (whole.path / name).exists():
                shutil.copyfile(whole.path / name, partial / name)
    _put_codec(codec, partial, side, ids)
    Checkpoint.open(partial, side)
    partial.rename(out / side)


def _put_codec(codec: Path, half: Path, side: Side, ids: dict[str, str]) -> None:
    """The codec, split.json and the sums of all small files; interrupted, the half is refused and this done again."""
    for name in CODEC:
        shutil.copyfile(codec / name, half / name)
    _write_json(half / "split.json", {"format": FORMAT, "side": side, **ids})
    small = [
        file for file in half.iterdir() if file.name != SUMS and (file.suffix != ".safetensors" or file.name in CODEC)
    ]
    _write_sums(half, _read_sums(half) | {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in small})


def _read_sums(half: Path) -> dict[str, str]:
    """File → SHA-256, of files that are complete."""
    file = half / SUMS
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _write_sums(half: Path, sums: dict[str, str]) -> None:
    """As `sha256sum -c SHA256SUMS` reads it."""
    new = half / f"{SUMS}.new"
    new.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())), encoding="utf-8")
    new.replace(half / SUMS)


def _size(tensors: Mapping[str, StoredTensor]) -> int:
    return sum(one.end - one.start for one in tensors.values())


def _counter(tell: Tell, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        tell(what, done, total)

    return advance


def _decoder_config(whole: Checkpoint) -> dict[str, Any]:
    """``config.json`` of a plain ``Qwen3ForCausalLM``: the text configuration as it was, named as Qwen3's."""
    text = dict(read_json(whole.path / "config.json")["text_config"])
    text |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    text.pop("auto_map", None)  # names code that is not copied
    text.setdefault("tie_word_embeddings", False)
    stored = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    text["dtype"] = stored[whole.stored["model.embed_tokens.weight"].dtype]
    text.pop("torch_dtype", None)
    return text


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
