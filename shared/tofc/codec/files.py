"""The two files of a codec, `codec.json` and `codec.safetensors`: read into the classes of its entropy model.

Promises that a folder is read with the entropy model that its `codec.json` names. Leaves checking values and tensors
to the classes `CodecConfig` and `CodecWeights` and what they derive.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from tofc.codec.config import CONFIG_FILE, FORMAT, CodecConfig
from tofc.codec.context.weights import ContextWeights
from tofc.codec.index.weights import IndexWeights
from tofc.codec.selective_hyperprior.weights import SelectiveHyperpriorWeights
from tofc.codec.weights import TENSOR_FILE, AnyArray, CodecWeights
from tofc.errors import CodecError

#: by the name in codec.json
ENTROPY_MODELS: dict[str, type[CodecWeights]] = {
    weights.config_class.entropy_model: weights
    for weights in (ContextWeights, IndexWeights, SelectiveHyperpriorWeights)
}


def parse_config(text: str | bytes) -> CodecConfig:
    """Parse the content of codec.json. Raises `CodecError`, also for keys that this version does not know."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise CodecError(f"codec.json is not JSON ({error}): export the codec again") from error
    found = values.pop("format", None) if isinstance(values, dict) else None
    if found != FORMAT:
        raise CodecError(f"codec.json: format must be {FORMAT}, got {found!r}: export the codec with this version")
    return _kind(values.pop("entropy_model", None)).config_class.of(values)


def load_config(directory: Path) -> CodecConfig:
    """Read `codec.json` of a directory. Raises `CodecError`, and `FileNotFoundError` if the file is missing."""
    try:
        return parse_config((directory / CONFIG_FILE).read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{directory} has no {CONFIG_FILE}; train a codec with `tofc-lab train-codec` and put it beside the "
            "weights with `tofc-lab split MODEL --codec FOLDER --out HALVES`"
        ) from None


def load_weights(directory: Path) -> CodecWeights:
    """Read both files of a directory. Raises `CodecError`, and `FileNotFoundError` if one is missing."""
    config = load_config(directory)
    try:
        tensors: dict[str, AnyArray] = load_file(directory / TENSOR_FILE)
    except FileNotFoundError:
        raise
    except MemoryError:  # of this machine, not of the file
        raise
    except Exception as error:  # the exception type of safetensors is not a public name
        raise CodecError(f"{directory / TENSOR_FILE} cannot be read ({error}): export the codec again") from error
    return weights_of(config, tensors)


def weights_of(config: CodecConfig, tensors: dict[str, AnyArray]) -> CodecWeights:
    """Make weights from tensors by their names in the file. Raises `CodecError` for missing and unknown names."""
    return _kind(config.entropy_model).of(config, tensors)


def _kind(name: Any) -> type[CodecWeights]:
    """Return the weights' class of an entropy model."""
    if not isinstance(name, str) or name not in ENTROPY_MODELS:
        known = ", ".join(sorted(ENTROPY_MODELS))
        raise CodecError(f"codec.json: entropy_model = {name!r}; must be one of {known}")
    return ENTROPY_MODELS[name]
