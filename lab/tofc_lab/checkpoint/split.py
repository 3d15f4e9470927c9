"""Splitting a checkpoint into a half for the device and one for the server.

    model-*.safetensors ─ names, shapes, types checked ─ hashed ─┬─ vision_model.* ──────────── device/
    config, tokenizer, codec                                     └─ vit_large_projector, rest ─ server/

Promises that weights are streamed: only a few megabytes are in memory, whatever the model's size; that a half appears
complete or not at all; and that an interrupted split resumes with the next file. Leaves opening the halves to
`tofc.model.checkpoint`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tofc.codec.files import load_weights
from tofc.errors import CheckpointError, UsageError
from tofc.model import tensor_files
from tofc.model.checkpoint import FORMAT, Checkpoint, Side, check_codec_model, codec_hash, model_hash
from tofc.model.config import SplitConfig, read_json
from tofc.model.prompt import load_tokenizer
from tofc.model.released_names import DECODER, PROJECTOR, VISION
from tofc.model.resources import require_disk
from tofc.model.tensor_files import StoredTensor
from tofc_lab.checkpoint import shards
from tofc_lab.checkpoint.write import write_json
from tofc_lab.progress import ByteProgress

CODEC = ("codec.json", "codec.safetensors")
#: copied to the server if they exist; none of them is code
TOKENIZER_FILES = (
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
SHARD_BYTES = 4 << 30  # per file; an interruption loses one file at most
SIDES: tuple[Side, ...] = ("device", "server")


@dataclass(frozen=True, kw_only=True)
class Halves:
    """The two halves that a split wrote."""

    device: Path
    server: Path
    model_id: str
    codec_id: str


def split(
    checkpoint_dir: Path,
    out: Path,
    *,
    codec: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: ByteProgress = lambda what, done, total: None,
) -> Halves:
    """Write `out/device` and `out/server` from a whole checkpoint and a codec, by default the checkpoint's own.

    `out/server` is also a plain Qwen3 checkpoint, which any engine loads. Existing halves of the same model are kept;
    only a different codec is replaced. Raises `CheckpointError` if the checkpoint is itself a half, incomplete or of
    another model than the codec, `UsageError` if `out` has a half of another model, and `ResourceError` if the disk is
    too small; all of them before anything is copied.
    """
    whole = Checkpoint.open(checkpoint_dir)
    if whole.side is not None:
        raise CheckpointError(f"{checkpoint_dir} is the {whole.side} half of a model already; split the whole one")
    load_tokenizer(whole)
    codec = codec or whole.path
    codec_id = codec_hash(codec)
    _check_codec(codec, whole.config)
    missing = [side for side in SIDES if not (out / side).exists()]
    size = sum(_size(part) for side in missing for part in _parts(whole, side).values())
    require_disk(
        size, out, "the split", over=[file for side in missing for file in (out / f".{side}.partial").glob("*")]
    )
    model_id = _identify(whole, out, progress)
    check_codec_model(codec, model_id)
    for side in SIDES:
        if side not in missing and (found := read_json(out / side / "split.json").get("model_id")) != model_id:
            raise UsageError(
                f"{out / side} holds half of the model {found}, but this model is {model_id}; remove it or "
                "split into another folder"
            )
    ids = {"model_id": model_id, "codec_id": codec_id}
    for side in SIDES:
        if side in missing:
            _write_half(whole, codec, out, side, ids, shard_bytes, progress)
        elif read_json(out / side / "split.json").get("codec_id") != codec_id:
            _put_codec(codec, out / side, side, ids)
    (out / ".split.json").unlink()
    return Halves(device=out / "device", server=out / "server", **ids)


def _check_codec(codec: Path, config: SplitConfig) -> None:
    sizes = load_weights(codec).config  # reads all of it, so that damage is found before gigabytes are copied
    if (sizes.feature_dim, sizes.hidden) != (config.feature_dim, config.hidden):
        raise CheckpointError(
            f"the codec in {codec} is for features of {sizes.feature_dim} and a decoder {sizes.hidden} wide, this "
            f"model has {config.feature_dim} and {config.hidden}; train a codec for it (tofc-lab train-codec)"
        )


def _identify(whole: Checkpoint, out: Path, progress: ByteProgress) -> str:
    """Return the model's id. All weights are read for it, so it is noted in `out` for when the split is resumed."""
    files = sorted({one.file for one in whole.stored.values()})
    source = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    note = out / ".split.json"
    if note.exists() and (noted := read_json(note)).get("source") == source:
        return str(noted["model_id"])
    for side in SIDES:  # left by a split of another checkpoint
        shutil.rmtree(out / f".{side}.partial", ignore_errors=True)
    found = model_hash(whole.stored, _counter(progress, "hashing", _size(whole.stored)))
    out.mkdir(parents=True, exist_ok=True)
    write_json(note, {"source": source, "model_id": found})
    return found


def _parts(whole: Checkpoint, side: Side) -> dict[str, dict[str, StoredTensor]]:
    """Return the tensors of a side: `model`, which is written in shards, and `projector`, in its own file."""
    prefixes: dict[str, str | tuple[str, ...]]
    prefixes = {"model": VISION} if side == "device" else {"model": DECODER, "projector": PROJECTOR}
    kept = {name: one for name, one in whole.stored.items() if not (whole.config.tied and name == "lm_head.weight")}
    return {
        part: {name: kept[name] for name in sorted(kept) if name.startswith(prefix)}
        for part, prefix in prefixes.items()
    }


def _write_half(
    whole: Checkpoint, codec: Path, out: Path, side: Side, ids: dict[str, str], shard_bytes: int, progress: ByteProgress
) -> None:
    """Write a half to a hidden folder, keeping the files that are complete there, and rename it at the end."""
    partial = out / f".{side}.partial"
    partial.mkdir(exist_ok=True)
    parts = _parts(whole, side)
    sizes = {name: one.end - one.start for name, one in parts["model"].items()}
    files = shards.plan(sizes, shard_bytes)
    tensors = {file: {name: parts["model"][name] for name in names} for file, names in files.items()}
    if "projector" in parts:
        tensors["projector.safetensors"] = parts["projector"]
    advance = _counter(progress, side, sum(map(_size, parts.values())))
    sums = _read_sums(partial)
    for file, group in tensors.items():
        if file in sums and (partial / file).exists():
            advance(_size(group))
            continue
        sums[file] = tensor_files.write(partial / file, group, advance)
        _write_sums(partial, sums)
    if len(files) > 1 or side == "server":  # without an index, vLLM loads every .safetensors as the decoder's
        write_json(partial / shards.INDEX, shards.index(files, sizes))
    if side == "device":
        shutil.copyfile(whole.path / "config.json", partial / "config.json")
    else:
        shutil.copyfile(whole.path / "config.json", partial / "split_config.json")
        write_json(partial / "config.json", _decoder_config(whole))
        for name in TOKENIZER_FILES:
            if (whole.path / name).exists():
                shutil.copyfile(whole.path / name, partial / name)
    _put_codec(codec, partial, side, ids)
    Checkpoint.open(partial, side)
    partial.rename(out / side)


def _put_codec(codec: Path, half: Path, side: Side, ids: dict[str, str]) -> None:
    """Write the codec, split.json and the sums of small files. A half where this was interrupted cannot be opened."""
    for name in CODEC:
        shutil.copyfile(codec / name, half / name)
    write_json(half / "split.json", {"format": FORMAT, "side": side, **ids})
    small = [
        file for file in half.iterdir() if file.name != SUMS and (file.suffix != ".safetensors" or file.name in CODEC)
    ]
    _write_sums(half, _read_sums(half) | {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in small})


def _read_sums(half: Path) -> dict[str, str]:
    """Return the SHA-256 of each complete file, by name."""
    file = half / SUMS
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _write_sums(half: Path, sums: dict[str, str]) -> None:
    """Write the sums in the format of `sha256sum -c SHA256SUMS`."""
    new = half / f"{SUMS}.new"
    new.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())), encoding="utf-8")
    new.replace(half / SUMS)


def _size(tensors: Mapping[str, StoredTensor]) -> int:
    return sum(one.end - one.start for one in tensors.values())


def _counter(progress: ByteProgress, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress(what, done, total)

    return advance


def _decoder_config(whole: Checkpoint) -> dict[str, Any]:
    """Return the `config.json` of a plain `Qwen3ForCausalLM`: the text configuration under Qwen3's name."""
    text = dict(read_json(whole.path / "config.json")["text_config"])
    text |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    text.pop("auto_map", None)  # names code that is not copied
    text.setdefault("tie_word_embeddings", False)
    stored = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    text["dtype"] = stored[whole.stored["model.embed_tokens.weight"].dtype]
    text.pop("torch_dtype", None)
    return text
