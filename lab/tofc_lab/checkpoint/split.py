"""Splitting a checkpoint into a half for the device and one for the server.

    model-*.safetensors ─ names, shapes, types checked ─ hashed ─┬─ vision_model.* ──────────── device/
    config, tokenizer, codecs                                    └─ vit_large_projector, rest ─ server/
    rest ─ what it says after a few texts ───────────────────────── server/probe.json

Promises that weights are streamed: a few megabytes are in memory, or one layer while the identity probe is computed,
whatever the model's size; that a half appears complete or not at all; and that an interrupted split resumes with the
next file. Leaves opening the halves to `tofc.model.checkpoint`.
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
from tofc.model import identity_probe, tensor_files
from tofc.model.checkpoint import FORMAT, Checkpoint, Side, model_hash
from tofc.model.config import SplitConfig, read_json
from tofc.model.feature_codecs import (
    CODEC_FILES,
    DEFAULT,
    FOLDER,
    IMAGE_FILES,
    check_codec_model,
    codec_folder,
    codec_hash,
    codec_names,
    is_name,
)
from tofc.model.prompt import load_tokenizer
from tofc.model.released_names import DECODER, PROJECTOR, VISION
from tofc.model.resources import require_disk
from tofc.model.tensor_files import StoredTensor
from tofc_lab.checkpoint import shards
from tofc_lab.checkpoint.write import write_json
from tofc_lab.progress import ByteProgress

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
    codec_id: str  # of the default codec
    codecs: Mapping[str, str]  # ids of the others by name


def split(
    checkpoint_dir: Path,
    out: Path,
    *,
    codecs: Mapping[str, Path] | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: ByteProgress = lambda what, done, total: None,
) -> Halves:
    """Write `out/device` and `out/server` from a whole checkpoint and its codecs.

    `codecs`, folders by name, replace the checkpoint's own of these names (`default` is the one beside its weights) or
    are added to them. `out/server` is also a plain Qwen3 checkpoint, which any engine loads. Existing halves of the
    same model are kept; only different codecs are replaced. Raises `CheckpointError` if the checkpoint is itself a
    half, incomplete or of another model than a codec, `UsageError` for a name that a codec cannot have and if `out` has
    a half of another model, and `ResourceError` if the disk is too small; all of them before anything is copied.
    """
    if wrong := [name for name in codecs or () if name != DEFAULT and not is_name(name)]:
        raise UsageError(f"the name of a codec must consist of a-z, 0-9 and -, got {wrong[0]!r}")
    whole = Checkpoint.open(checkpoint_dir)
    if whole.side is not None:
        raise CheckpointError(f"{checkpoint_dir} is the {whole.side} half of a model already; split the whole one")
    load_tokenizer(whole)
    folders = {name: codec_folder(whole.path, name) for name in (DEFAULT, *codec_names(whole.path))} | dict(
        codecs or {}
    )
    ids = {name: codec_hash(folder) for name, folder in folders.items()}
    for folder in folders.values():
        _check_codec(folder, whole.config)
    missing = [side for side in SIDES if not (out / side).exists()]
    size = sum(_size(part) for side in missing for part in _parts(whole, side).values())
    require_disk(
        size, out, "the split", over=[file for side in missing for file in (out / f".{side}.partial").glob("*")]
    )
    model_id = _identify(whole, out, progress)
    for folder in folders.values():
        check_codec_model(folder, model_id)
    for side in SIDES:
        if side not in missing and (found := read_json(out / side / "split.json").get("model_id")) != model_id:
            raise UsageError(
                f"{out / side} holds half of the model {found}, but this model is {model_id}; remove it or "
                "split into another folder"
            )
    codec_id, others = ids[DEFAULT], {name: one for name, one in ids.items() if name != DEFAULT}
    record = {"format": FORMAT, "model_id": model_id, "codec_id": codec_id} | ({"codecs": others} if others else {})
    for side in SIDES:
        if side in missing:
            _write_half(whole, folders, out, side, record, shard_bytes, progress)
        elif read_json(out / side / "split.json") != {**record, "side": side} or _lacks_probe(out / side, side):
            _put_codecs(whole, folders, out / side, side, record)
    (out / ".split.json").unlink()
    return Halves(device=out / "device", server=out / "server", model_id=model_id, codec_id=codec_id, codecs=others)


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
    whole: Checkpoint,
    codecs: Mapping[str, Path],
    out: Path,
    side: Side,
    record: Mapping[str, Any],
    shard_bytes: int,
    progress: ByteProgress,
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
    _put_codecs(whole, codecs, partial, side, record)
    Checkpoint.open(partial, side)
    partial.rename(out / side)


def _lacks_probe(half: Path, side: Side) -> bool:
    return side == "server" and not (half / identity_probe.FILE).exists()  # split by an earlier version


def _put_codecs(
    whole: Checkpoint, codecs: Mapping[str, Path], half: Path, side: Side, record: Mapping[str, Any]
) -> None:
    """Write the codecs, the server's identity probe, split.json and the sums of small files.

    A half where this was interrupted cannot be opened.
    """
    if _lacks_probe(half, side):
        from tofc_lab.checkpoint.probe import probe_of  # imports torch

        probe_of(whole, record["model_id"]).write(half)
    shutil.rmtree(half / FOLDER, ignore_errors=True)
    for name, folder in codecs.items():
        target = half if name == DEFAULT else half / FOLDER / name
        target.mkdir(parents=True, exist_ok=True)
        for part in CODEC_FILES:
            shutil.copyfile(folder / part, target / part)
        (target / IMAGE_FILES).unlink(missing_ok=True)  # of an earlier codec
        if side == "device" and (folder / IMAGE_FILES).exists():
            shutil.copyfile(folder / IMAGE_FILES, target / IMAGE_FILES)
    write_json(half / "split.json", {**record, "side": side})
    gone = (f"{FOLDER}/", IMAGE_FILES)
    sums = {name: digest for name, digest in _read_sums(half).items() if not name.startswith(gone)}
    for file in sorted(half.rglob("*")):
        if file.is_file() and file.name != SUMS and (file.suffix != ".safetensors" or file.name in CODEC_FILES):
            sums[file.relative_to(half).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    _write_sums(half, sums)


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
