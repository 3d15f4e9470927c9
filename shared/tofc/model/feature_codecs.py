"""The codecs of a checkpoint: its default one beside the weights, further ones in folders with their names.

    codec.json, codec.safetensors          the codec `default`
    codecs/NAME/codec.json, .safetensors   the codec NAME: a-z, 0-9 and -
    image_files.json                       beside either: image files that answer as well (`--mode auto`)

Promises that a name is found in the checkpoint or refused with the names that are there, so that no name leaves its
folder. Leaves the content of the files to `tofc.codec`, and which codec both sides use to the handshake, which compares
the hashes made here.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from tofc.errors import CheckpointError
from tofc.model import tensor_files

DEFAULT = "default"  # the name of the codec beside the weights
FOLDER = "codecs"
CODEC_FILES = ("codec.json", "codec.safetensors")
IMAGE_FILES = "image_files.json"  # beside a codec's files, and optional: which image files answer as well


def codec_names(path: Path) -> tuple[str, ...]:
    """Return the names of the codecs in a checkpoint's folder: the default one first, then in alphabetical order."""
    first = [DEFAULT] if (path / CODEC_FILES[0]).exists() else []
    others = sorted(file.parent.name for file in path.glob(f"{FOLDER}/*/{CODEC_FILES[0]}"))
    return tuple(first + [name for name in others if is_name(name)])


def is_name(name: str) -> bool:
    """Say whether a codec beside the default one may have this name."""
    return name != DEFAULT and re.fullmatch("[a-z0-9-]+", name) is not None


def codec_folder(path: Path, name: str) -> Path:
    """Return the folder of a checkpoint's codec. Raises `CheckpointError` for a name that the checkpoint lacks.

    The default codec is not looked for: a checkpoint whose codec is still to be trained has none.
    """
    if name == DEFAULT:
        return path
    if name not in (found := codec_names(path)):
        has = f"its codecs are {', '.join(found)}" if found else "it has no codec"
        raise CheckpointError(f"--feature-codec must name a codec of {path}, got {name!r}; {has}")
    return path / FOLDER / name


def codec_hash(folder: Path) -> str:
    """Return the first 16 hex digits of SHA-256 over `codec.json` and `codec.safetensors` in `folder`."""
    digest = hashlib.sha256()
    for name in CODEC_FILES:
        try:
            digest.update((folder / name).read_bytes())
        except OSError:
            raise CheckpointError(
                f"{folder} has no readable {name}; put the codec trained for this model beside its weights"
            ) from None
    return digest.hexdigest()[:16]


def check_codec_model(folder: Path, model_id: str) -> None:
    """Raise `CheckpointError` if the codec in `folder` records that it was trained for another model."""
    trained_for = tensor_files.read_metadata(folder / CODEC_FILES[1]).get("model_id", model_id)
    if trained_for != model_id:
        raise CheckpointError(
            f"the codec in {folder} was trained for the model {trained_for}, but this model is {model_id}; train a "
            "codec for it, or use the weights of the other model"
        )
