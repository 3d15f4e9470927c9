"""The directory of a checkpoint, whole or one half of it: its configuration, its tensors, its identity.

Promises that only the tensors asked for are read, by memory-mapping and under their released names, and that a
checkpoint with missing or mismatched tensors is refused when it is opened. Leaves building the networks to `tower`,
`projector` and the server's engines. Only the methods that return torch's tensors import torch.

    whole                        device half                  server half
    config.json                  config.json                  config.json        (plain Qwen3)
    model*.safetensors           model.safetensors  (tower)   model.safetensors  (decoder)
    codec.json, .safetensors     codec.json, .safetensors     projector.safetensors
    codecs/NAME/…                codecs/NAME/…                split_config.json  (the original config.json)
    tokenizer…, chat template    split.json                   codec…, codecs…, tokenizer…, split.json
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tofc.errors import CheckpointError
from tofc.model import released_names, tensor_files
from tofc.model.config import SplitConfig, read_json
from tofc.model.feature_codecs import DEFAULT, check_codec_model, codec_folder, codec_hash
from tofc.model.released_names import DECODER, PROJECTOR, VISION
from tofc.model.shipped import find_model, shipped_models
from tofc.model.tensor_files import StoredTensor
from tofc.model.tower_config import Shapes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint", "CheckpointError", "ModelIdentity", "Side", "model_hash"]

Side = Literal["device", "server"]
FORMAT = 1  # of split.json
_FLOATS = ("BF16", "F16", "F32")


def model_hash(stored: Mapping[str, StoredTensor], advance: Callable[[int], None] = lambda size: None) -> str:
    """Return the first 16 hex digits of SHA-256 over names, types, shapes and bytes, in the order of the names.

    `advance` is called with the number of bytes of each piece read.
    """
    digest = hashlib.sha256()
    for name in sorted(stored):
        tensor = stored[name]
        digest.update(f"{name}\0{tensor.dtype}\0{','.join(map(str, tensor.shape))}\0".encode())
        for piece in tensor.chunks():
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: a directory with a model's configuration and weights, whole or one half of it.

    >>> from tofc.codec import Codec
    >>> from tofc.model.shipped import NANO                # the folder of the model that ships with TOFC
    >>> checkpoint = Checkpoint.open(NANO, side="device")
    >>> codec = Codec.load(checkpoint.codec_path)
    >>> assert codec.config.feature_dim == checkpoint.config.feature_dim
    >>> assert all(tensor.ndim for tensor in checkpoint.vision_tensors().values())
    """

    path: Path
    """The directory; the half's own, if `open` was given the folder above it."""
    config: SplitConfig
    """The whole model's configuration, also in a half."""
    side: Side | None
    """Which half the directory holds; None for a whole checkpoint."""
    stored: Mapping[str, StoredTensor]
    """Released name of each tensor → its dtype, shape and byte range."""
    feature_codec: str = DEFAULT
    """Name of the codec in use."""

    @classmethod
    def open(cls, path: Path, side: Side | None = None, *, feature_codec: str = DEFAULT) -> Checkpoint:
        """Open `path`, or `path/<side>` where `path` itself holds no model; it may be the name of a shipped model.

        The tensors of `side` must exist with the shapes that the configuration asks for; without `side`, those of the
        whole directory. Reads headers, not weights. Raises `CheckpointError`, also for a name in `feature_codec` that
        no codec of the checkpoint has.
        """
        path = find_model(Path(path))
        if side not in (None, "device", "server"):
            raise CheckpointError(f"side must be 'device', 'server' or None (a whole checkpoint), got {side!r}")
        if not (path / "config.json").exists():
            if side is not None and (path / side / "config.json").exists():
                path = path / side
            elif any((path / half / "config.json").exists() for half in ("device", "server")):
                raise CheckpointError(
                    f"{path} holds both halves of a model; name the one to open (--model {path}/device)"
                )
            else:
                raise CheckpointError(
                    f"{path} has no config.json; give the directory of a checkpoint, or the name of a model that ships "
                    f"with TOFC: {', '.join(shipped_models())}"
                )
        half = _half(path)
        if half is not None and side is not None and half != side:
            raise CheckpointError(f"{path} is the {half} half of a model; the {side} half is needed: give its folder")
        original = path / "split_config.json"
        config = SplitConfig.read(original if original.exists() else path / "config.json")
        found = tensor_files.read_directory(path)
        if half == "server":
            found |= tensor_files.read_header(path / "projector.safetensors")
        stored = {released_names.canonical_name(name): tensor for name, tensor in found.items()}
        checkpoint = cls(path=path, config=config, side=half, stored=stored, feature_codec=feature_codec)
        checkpoint._check(half or side)
        codec_folder(path, feature_codec)
        return checkpoint

    def _check(self, side: Side | None) -> None:
        """Check the tensors of `side`, or of the whole model for None."""
        expected: Shapes = {}
        if side != "server":
            expected |= released_names.vision_shapes(self.config)
        if side != "device":
            expected |= released_names.projector_shapes(self.config) | released_names.decoder_shapes(self.config)
        for name, shape in expected.items():
            tensor = self.stored.get(name)
            if tensor is None:
                raise CheckpointError(
                    f"{self.path} has no tensor {name}, which its configuration asks for with shape {shape}; "
                    "fetch or export the checkpoint again"
                )
            if tensor.shape != shape:
                raise CheckpointError(
                    f"{tensor.file}: {name} has shape {tensor.shape}, the configuration asks for {shape}; "
                    "config.json and weights belong to different models: fetch or export both again"
                )
            if tensor.dtype not in _FLOATS:
                raise CheckpointError(
                    f"{tensor.file}: the dtype of {name} must be one of {', '.join(_FLOATS)}, got {tensor.dtype}; "
                    "quantised weights are not supported, fetch the model in half precision"
                )
        if side == self.side:  # the whole directory was checked: nothing may be left over
            extra = sorted(self.stored.keys() - expected.keys() - ({"lm_head.weight"} if self.config.tied else set()))
            if extra:
                raise CheckpointError(
                    f"{self.stored[extra[0]].file} has a tensor {extra[0]} {self.stored[extra[0]].shape}, which the "
                    f"configuration does not know (it asks for {len(expected)} tensors; {len(extra)} more were found); "
                    "config.json and weights belong to different models: fetch or export both again"
                )

    @cached_property
    def model_id(self) -> str:
        """Identity of the whole model's weights, 16 hex digits. For a whole checkpoint, reads every weight, once.

        Raises `CheckpointError` for a half that does not record it.
        """
        if self.side is None:
            return model_hash(self.stored)
        return _recorded(self.path, "model_id")

    @property
    def codec_path(self) -> Path:
        """The folder of the codec in use, as `Codec.load` takes it."""
        return codec_folder(self.path, self.feature_codec)

    @cached_property
    def codec_id(self) -> str:
        """Identity of the codec in use, 16 hex digits. Raises what `codec_id_of` raises."""
        return self.codec_id_of(self.feature_codec)

    def codec_id_of(self, name: str) -> str:
        """Return the identity of a codec. Raises `CheckpointError` if it is missing or for another model."""
        folder = codec_folder(self.path, name)
        found = codec_hash(folder)
        recorded = None if self.side is None else _recorded_codec(self.path, name)
        if recorded is None:  # a whole checkpoint's, or one that was added to a half later
            check_codec_model(folder, self.model_id)
        elif found != recorded:
            raise CheckpointError(
                f"the codec in {folder} is {found}, but this half was split with the codec {recorded}; copy "
                "codec.json and codec.safetensors from the split that made this half"
            )
        return found

    def parameter_count(self, prefix: str | tuple[str, ...]) -> int:
        """Count the parameters of the tensors whose released names begin with `prefix`."""
        return sum(prod(tensor.shape) for name, tensor in self.stored.items() if name.startswith(prefix))

    @property
    def vision_dtype(self) -> str:
        """The type that most of the tower's weights are stored in: BF16, F16 or F32."""
        counts = Counter[str]()
        for name, tensor in self.stored.items():
            if name.startswith(VISION):
                counts[tensor.dtype] += prod(tensor.shape)
        return counts.most_common(1)[0][0]

    def tensors(self, prefix: str | tuple[str, ...] = "") -> dict[str, Tensor]:
        """Map the tensors whose released names begin with `prefix` into memory: on the CPU, in their stored dtype.

        Empty if the checkpoint has none: a device half has no decoder. Needs torch.
        """
        from safetensors import safe_open

        files: dict[Path, list[str]] = {}
        for name in sorted(self.stored):
            if name.startswith(prefix):
                files.setdefault(self.stored[name].file, []).append(name)
        found: dict[str, Tensor] = {}
        for file, names in files.items():
            with safe_open(file, framework="pt", device="cpu") as opened:
                for name in names:
                    found[name] = opened.get_tensor(self.stored[name].stored_name)
        return found

    def vision_tensors(self) -> dict[str, Tensor]:
        """Map the vision tower's tensors into memory, under their released names."""
        return self.tensors(VISION)

    def decoder_tensors(self) -> dict[str, Tensor]:
        """Map the decoder's tensors into memory, under the names that `Qwen3ForCausalLM` gives them."""
        return self.tensors(DECODER)

    def projector_tensors(self) -> dict[str, Tensor]:
        """Map the projector's tensors into memory, by released name: a weight [H, D] and perhaps a bias [H]."""
        return self.tensors(PROJECTOR)


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """The identities of a checkpoint's model and default codec, for callers that need no tensors."""

    config: SplitConfig
    model_id: str
    codec_id: str

    @classmethod
    def read(cls, path: Path) -> ModelIdentity:
        """Read the identities of `path`, or of `path/device` if `path` holds no model. Raises `CheckpointError`.

        A half records them in split.json; in a whole checkpoint, every weight is read.
        """
        folder = path if (path / "config.json").exists() else path / "device"
        if _half(folder) is not None:
            original = folder / "split_config.json"
            config = SplitConfig.read(original if original.exists() else folder / "config.json")
            return cls(config=config, model_id=_recorded(folder, "model_id"), codec_id=_recorded(folder, "codec_id"))
        checkpoint = Checkpoint.open(path)
        return cls(config=checkpoint.config, model_id=checkpoint.model_id, codec_id=checkpoint.codec_id)


def _half(path: Path) -> Side | None:
    """Return which half a directory holds, by its split.json; None for a whole checkpoint."""
    file = path / "split.json"
    if not file.exists():
        return None
    record = read_json(file)
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: format must be {FORMAT}, got {record.get('format')!r}; split the checkpoint again"
        )
    side = record.get("side")
    if side == "device" or side == "server":
        return "device" if side == "device" else "server"
    raise CheckpointError(f"{file}: side must be 'device' or 'server', got {side!r}; split the checkpoint again")


def _recorded_codec(path: Path, name: str) -> str | None:
    """Read the identity of a codec from a half's split.json; None for one that it does not name."""
    if name == DEFAULT:
        return _recorded(path, "codec_id")
    codecs = read_json(path / "split.json").get("codecs", {})
    if not isinstance(codecs, dict):
        raise CheckpointError(f"{path / 'split.json'}: codecs must be an object, got {codecs!r}; split again")
    return _identity(path, f"codecs.{name}", codecs[name]) if name in codecs else None


def _recorded(path: Path, key: str) -> str:
    """Read an identity from a half's split.json."""
    return _identity(path, key, read_json(path / "split.json").get(key))


def _identity(path: Path, key: str, value: object) -> str:
    """Check an identity of a half's split.json."""
    if not isinstance(value, str) or len(value) != 16 or not set(value) <= set("0123456789abcdef"):
        raise CheckpointError(
            f"{path / 'split.json'}: {key} must be 16 hex digits, got {value!r}; split the checkpoint again"
        )
    return value
