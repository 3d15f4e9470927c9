"""A learned image codec: compressai's mean-scale hyperprior, one model for several rates.

    x ─ g_a ─ ×gain[r] ─ y ─ round ─ coder ─ ŷ ─ ÷gain[r] ─ g_s ─ x̂
                          └ h_a ─ z ─ round ─ coder ─ ẑ ─ h_s ─ mean, scale of y

Minnen et al. 2018 (arXiv 1809.02736), as compressai's `MeanScaleHyperprior` with its layers, entropy models and coder;
gains for each channel and rate are those of Cui et al. 2021 (arXiv 2003.02150). Promises that the strings are what
compressai's coder writes, and that `decompress` needs only them, the size of the picture and the rate. As with
compressai, only the machine that encoded decodes exactly. Leaves training to `learned`.
"""

from __future__ import annotations

import sys
import types
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tofc_lab.codec import compressai_parts  # noqa: F401  # makes compressai importable


def _put_stand_ins() -> None:
    """Make `compressai.models.google` importable without torchvision and point clouds, which its package imports."""
    import compressai

    registry, models = types.ModuleType("compressai.registry"), types.ModuleType("compressai.models")
    registry.register_model = registry.register_module = lambda _: lambda cls: cls  # type: ignore[attr-defined]
    models.__path__ = [f"{path}/models" for path in compressai.__path__]
    for module in (registry, models):
        sys.modules.setdefault(module.__name__, module)


_put_stand_ins()

from compressai.models.google import MeanScaleHyperprior  # noqa: E402
from compressai.ops import quantize_ste  # noqa: E402

MULTIPLE = 64  # of a side in px: y is 16 times smaller, z 64 times


class StepResult(NamedTuple):
    """The results of a training step on a batch: x̂ [B, 3, H, W], and the bits of y and z together."""

    x_hat: Tensor
    bits: Tensor


class Hyperprior(MeanScaleHyperprior):  # type: ignore[misc]  # compressai has no types
    """The model, with initial `gains` [rates]; larger ones mean finer steps and more bytes."""

    def __init__(self, channels: int, latent: int, gains: tuple[float, ...]) -> None:
        super().__init__(channels, latent)
        initial = torch.tensor(gains).log()[:, None]
        self.y_gain = nn.Parameter(initial.expand(-1, latent).clone())  # logarithms: a gain stays above 0
        self.y_inverse = nn.Parameter(-initial.expand(-1, latent).clone())
        self.z_gain = nn.Parameter(torch.zeros(len(gains), channels))
        self.z_inverse = nn.Parameter(torch.zeros(len(gains), channels))

    def analyse(self, x: Tensor, rate: int) -> tuple[Tensor, Tensor]:
        """Return y [B, M, H/16, W/16] and z [B, N, H/64, W/64], not rounded, of pixels [B, 3, H, W] in 0…1."""
        y = self.g_a(x).float() * self.y_gain[rate].exp()[:, None, None]
        return y, self.h_a(y) * self.z_gain[rate].exp()[:, None, None]

    def expect(self, z_hat: Tensor, rate: int) -> tuple[Tensor, Tensor]:
        """Return the predicted scales and means of y."""
        scales, means = self.h_s(z_hat * self.z_inverse[rate].exp()[:, None, None]).chunk(2, 1)
        return scales, means

    def synthesise(self, y_hat: Tensor, rate: int) -> Tensor:
        """Return x̂ [B, 3, H, W] of ŷ, not clamped."""
        x_hat: Tensor = self.g_s(y_hat * self.y_inverse[rate].exp()[:, None, None])
        return x_hat

    def forward(self, x: Tensor, rate: int, autocast: bool = False) -> StepResult:
        """Return bits estimated with noise, and x̂ from rounded y (Minnen and Singh 2020).

        With `autocast`, convolutions compute in bf16. The noisy estimate is some 0.07 bits per pixel above what the
        coder writes, because noise gives bits even to symbols that are always 0.
        """
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, z = self.analyse(x, rate)
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            z_hat, z_likelihoods = self.entropy_bottleneck(z.float())
            scales, means = self.expect(z_hat, rate)
            _, y_likelihoods = self.gaussian_conditional(y, scales, means=means)
            y_hat = quantize_ste(y - means) + means
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            x_hat = self.synthesise(y_hat, rate)
        return StepResult(x_hat.float(), -(y_likelihoods.log2().sum() + z_likelihoods.log2().sum()))

    @property
    def rates(self) -> int:
        """The number of rates."""
        return len(self.y_gain)

    def ready(self) -> Hyperprior:
        """Build the coder's tables, which is only allowed after training; return the model itself."""
        self.eval().update(force=True, update_quantiles=True)
        return self

    @torch.inference_mode()
    def compress(self, image: Image.Image, rate: int) -> tuple[bytes, bytes]:
        """Return the strings of y and z; call `ready` before."""
        y, z = self.analyse(pixels(image), rate)
        z_strings = self.entropy_bottleneck.compress(z)
        scales, means = self.expect(self.entropy_bottleneck.decompress(z_strings, z.shape[-2:]), rate)
        indexes = self.gaussian_conditional.build_indexes(scales)
        return self.gaussian_conditional.compress(y, indexes, means=means)[0], z_strings[0]

    @torch.inference_mode()
    def decompress(self, strings: tuple[bytes, bytes], size: tuple[int, int], rate: int) -> Image.Image:
        """Decode a picture of `size` (width, height) px."""
        width, height = size
        shape = (-(-height // MULTIPLE), -(-width // MULTIPLE))
        scales, means = self.expect(self.entropy_bottleneck.decompress([strings[1]], shape), rate)
        indexes = self.gaussian_conditional.build_indexes(scales)
        y_hat = self.gaussian_conditional.decompress([strings[0]], indexes, means=means)
        x_hat = self.synthesise(y_hat, rate)[0, :, :height, :width].clamp(0, 1)
        return Image.fromarray((x_hat * 255).round().byte().permute(1, 2, 0).numpy())


def pixels(image: Image.Image) -> Tensor:
    """Return a picture as [1, 3, H, W] in 0…1, the last row and column repeated up to a multiple of 64 px."""
    x = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    down, right = (-side % MULTIPLE for side in x.shape[-2:])
    return nn.functional.pad(x, (0, right, 0, down), mode="replicate")
