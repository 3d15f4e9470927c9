"""A checkpoint directory, whole or one half of it: its configuration, its tensors, its identity.

Promises that only what is asked for is read, by memory-mapping, under the released names, and that a
checkpoint which cannot work is refused at opening. Leaves building the networks to ``tower``,
``projector`` and the server's engines; torch is imported only where a tensor is wanted as one.

    whole                        device half                  server half
    config.json                  config.json                  config.json        (plain Qwen3)
    model*.safetensors           model.safetensors  (tower)   model.safetensors  (decoder)
    codec.json, .safetensors     codec.json, .safetensors     projector.safetensors
    tokenizer…, chat template    split.json                   split_config.json  (the original config.json)
                                                              codec…, tokenizer…, split.json
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shared.model import released_names, tensor_files
from shared.model.config import CheckpointError, SplitConfig, read_json
from shared.model.released_names import DECODER, PROJECTOR, VISION
from shared.model.tensor_files import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint", "CheckpointError", "Origin", "Side", "check_codec_model", "codec_hash", "model_hash"]

Side = Literal["device", "server"]
FORMAT = 1  # of split.json
_FLOATS = ("BF16", "F16", "F32")


def model_hash(stored: Mapping[str, StoredTensor], advance: Callable[[int], None] = lambda size: None) -> str:
    """First 16 hex digits of SHA-256 over names, types, shapes and bytes, in the order of the names.

    ``advance`` hears of the bytes of each piece.
    """
    digest = hashlib.sha256()
    for name in sorted(stored):
        one = stored[name]
        digest.update(f"{name}\0{one.dtype}\0{','.join(map(str, one.shape))}\0".encode())
        for piece in one.chunks():
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()[:16]


def codec_hash(path: Path) -> str:
    """First 16 hex digits of SHA-256 over ``codec.json`` and ``codec.safetensors`` in ``path``."""
    digest = hashlib.sha256()
    for name in ("codec.json", "codec.safetensors"):
        try:
            digest.update((path / name).read_bytes())
        except OSError:
            raise CheckpointError(
                f"{path} has no readable {name}; put the codec trained for this model beside its weights"
            ) from None
    return digest.hexdigest()[:16]


def check_codec_model(path: Path, model_id: str) -> None:
    """Raises ``CheckpointError`` if the codec in ``path`` says that it was trained for another model."""
    trained_for = tensor_files.read_metadata(path / "codec.safetensors").get("model_id", model_id)
    if trained_for != model_id:
        raise CheckpointError(
            f"the codec in {path} was trained for the model {trained_for}, and this is {model_id}; train one for it, "
            "or take the weights that it was trained for"
        )


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. ``side`` is None for a whole one; ``stored`` maps released names to byte ranges."""

    path: Path
    config: SplitConfig
    side: Side | None
    stored: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, path: Path, side: Side | None = None) -> Checkpoint:
        """Open ``path``, or ``path/<side>`` where ``path`` itself holds no model.

        With ``side``, only that side's tensors need be there and are checked against the configuration;
        without, all that the directory claims to hold. Raises ``CheckpointError``.
        """
        path = Path(path)
        if side not in (None, "device", "server"):
            raise CheckpointError(f"side is {side!r}; allowed: 'device', 'server' or None for a whole checkpoint")
        if not (path / "config.json").exists():
            if side is not None and (path / side / "config.json").exists():
                path = path / side
            elif any((path / one / "config.json").exists() for one in ("device", "server")):
                raise CheckpointError(f"{path} holds halves of a model; say which one to open (--model {path}/device)")
            else:
                raise CheckpointError(f"{path} has no config.json; give the directory of a checkpoint")
        marked = _mark(path)
        if marked is not None and side is not None and marked != side:
            raise CheckpointError(f"{path} is the {marked} half of a model; the {side} half is needed here")
        original = path / "split_config.json"
        config = SplitConfig.read(original if original.exists() else path / "config.json")
        found = tensor_files.read_directory(path)
        if marked == "server":
            found |= tensor_files.read_header(path / "projector.safetensors")
        stored = {released_names.canonical(name): one for name, one in found.items()}
        checkpoint = cls(path=path, config=config, side=marked, stored=stored)
        checkpoint._check(marked or side)
        return checkpoint

    def _check(self, side: Side | None) -> None:
        expected: released_names.Shapes = {}
        if side != "server":
            expected |= released_names.vision_shapes(self.config)
        if side != "device":
            expected |= released_names.projector_shapes(self.config) | released_names.decoder_shapes(self.config)
        for name, shape in expected.items():
            one = self.stored.get(name)
            if one is None:
                raise CheckpointError(
                    f"{self.path} has no tensor {name}, expected with shape {shape} by its configuration; "
                    "fetch or export the checkpoint again"
                )
            if one.shape != shape:
                raise CheckpointError(
                    f"{one.file}: {name} has shape {one.shape}, the configuration asks for {shape}; "
                    "config.json and weights are of different models"
                )
            if one.dtype not in _FLOATS:
                raise CheckpointError(
                    f"{one.file}: {name} has type {one.dtype}, expected is one of {', '.join(_FLOATS)}; quantised "
                    "weights are not supported, fetch the model in half precision"
                )
        if side == self.side:  # all that the directory claims to hold
            extra = sorted(self.stored.keys() - expected.keys() - ({"lm_head.weight"} if self.config.tied else set()))
            if extra:
                raise CheckpointError(
                    f"{self.stored[extra[0]].file} has a tensor {extra[0]} {self.stored[extra[0]].shape}, which the "
                    f"configuration does not know (it asks for {len(expected)} tensors, {len(extra)} more are there); "
                    "config.json and weights are of different models"
                )

    @cached_property
    def model_id(self) -> str:
        """Identity of the whole model's weights, 16 hex digits; of a whole checkpoint it reads every byte once."""
        if self.side is None:
            return model_hash(self.stored)
        return _recorded(self.path, "model_id")

    @cached_property
    def codec_id(self) -> str:
        """Identity of the codec, 16 hex digits. Raises ``CheckpointError`` if it is missing or another model's."""
        found = codec_hash(self.path)
        if self.side is None:
            check_codec_model(self.path, self.model_id)
        elif found != (recorded := _recorded(self.path, "codec_id")):
            raise CheckpointError(
                f"the codec in {self.path} is {found}, but this half was split with {recorded}: it belongs to another "
                "model; copy codec.json and codec.safetensors from the split that made this half"
            )
        return found

    def numbers(self, prefix: str | tuple[str, ...]) -> int:
        """How many numbers the tensors hold whose released name begins with ``prefix``."""
        return sum(prod(one.shape) for name, one in self.stored.items() if name.startswith(prefix))

    def tensors(self, prefix: str | tuple[str, ...] = "") -> dict[str, Tensor]:
        """Tensors whose released name begins with ``prefix``, memory-mapped, on the CPU, as they are stored."""
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
        """The tower's tensors."""
        return self.tensors(VISION)

    def decoder_tensors(self) -> dict[str, Tensor]:
        """The decoder's tensors, as ``Qwen3ForCausalLM`` names them."""
        return self.tensors(DECODER)

    def projector_tensors(self) -> dict[str, Tensor]:
        """The projector's tensors."""
        return self.tensors(PROJECTOR)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which model a directory comes from, for what needs none of its tensors."""

    config: SplitConfig
    model_id: str
    codec_id: str

    @classmethod
    def read(cls, path: Path) -> Origin:
        """Of ``path``, or ``path/device``: of a half its configuration and split.json, of a whole checkpoint all.

        Raises ``CheckpointError``.
        """
        half = path if (path / "config.json").exists() else path / "device"
        if _mark(half) is not None:
            original = half / "split_config.json"
            config = SplitConfig.read(original if original.exists() else half / "config.json")
            return cls(config=config, model_id=_recorded(half, "model_id"), codec_id=_recorded(half, "codec_id"))
        checkpoint = Checkpoint.open(path)
        return cls(config=checkpoint.config, model_id=checkpoint.model_id, codec_id=checkpoint.codec_id)


def _mark(path: Path) -> Side | None:
    file = path / "split.json"
    if not file.exists():
        return None
    mark = read_json(file)
    if mark.get("format") != FORMAT:
        raise CheckpointError(
            f"{file} has format {mark.get('format')!r}, this version reads {FORMAT}: split the checkpoint again"
        )
    side = mark.get("side")
    if side == "device" or side == "server":
        return "device" if side == "device" else "server"
    raise CheckpointError(f"{file} names the side {side!r}; allowed: 'device', 'server'")


def _recorded(path: Path, key: str) -> str:
    value = read_json(path / "split.json").get(key)
    if not isinstance(value, str) or len(value) != 16 or not set(value) <= set("0123456789abcdef"):
        raise CheckpointError(
            f"{path / 'split.json'}: {key} is {value!r}, not 16 hex digits; split the checkpoint again"
        )
    return value
