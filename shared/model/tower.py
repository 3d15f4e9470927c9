"""The vision tower: pixels [B, 3, H, W] → features [B, N, 4 × width].

Promises the published Perception Encoder computation for any square view whose side is a multiple of the
patch (STEP3-VL-10B, arXiv 2601.09668; Perception Encoder, arXiv 2504.13181), as transformers implements
it, its renaming of the released tensors included; and no more memory than the weights take in the type asked
for, of which those stored in it stay in their file. Leaves normalising pixels to ``views``.

    pixels ─ patches ─ + positions ─ LN ─ L × (attention with 2-D RoPE, MLP) ─ conv ½ ─ conv ½ ─ features
             14 px     interpolated                                            [B, 13·13, 6144] of 728 px
"""

from __future__ import annotations

import ctypes
import sys
import threading
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Step3p7VisionConfig, Step3p7VisionModel
from transformers.activations import QuickGELUActivation
from transformers.models.step3p7.modeling_step3p7 import apply_rotary_pos_emb_vision
from transformers.utils import logging as transformers_logging

from shared.model.checkpoint import Checkpoint
from shared.model.config import CheckpointError
from shared.model.int8 import Int8Linear
from shared.model.mapped import Mapped
from shared.model.released_names import VISION
from shared.model.room import need_memory

_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BLOCK = 1 << 20  # bytes
BLOCK = 676  # tokens: a quarter of a view of 728 px


class Tower:
    """A loaded tower on ``device``. Safe to use from one thread at a time.

    >>> tower = Tower(Checkpoint.open(path, side="device"))                # doctest: +SKIP
    >>> features = tower.encode(np.zeros((1, 3, 336, 336), np.float32))    # doctest: +SKIP
    >>> features.shape                                                     # doctest: +SKIP
    (1, 36, 768)
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        """Read the tower's tensors into ``dtype``.

        Raises ``CheckpointError`` if they do not fit each other, ``RoomError`` if they do not fit a CPU's memory.

        ``torch.int8``, on a CPU: the transformer's linear layers in it, everything else in bfloat16.
        """
        self.config = checkpoint.config
        self.dtype = torch.bfloat16 if dtype == torch.int8 else dtype
        self.device = torch.device(device)
        _give_large_blocks_back()
        self.model = _load(checkpoint, self.dtype, self.device, int8=dtype == torch.int8)

    @property
    def weight_bytes(self) -> int:
        """What the weights take in memory, mapped ones included."""
        rounded = (module.buffers() for module in self.model.modules() if isinstance(module, Int8Linear))
        return sum(one.nbytes for one in chain(self.model.parameters(), *rounded))

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised pixels [B, 3, S, S] → features [B, N, D], row by row, N = ``config.grid(S)`` squared.

        Raises ``ValueError`` for another shape or a side that is no multiple of the patch.
        """
        patch = self.config.patch
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3] or pixels.shape[2] % patch:
            raise ValueError(
                f"pixels are {pixels.shape}; the tower takes [B, 3, S, S] with S a multiple of {patch}: use views()"
            )
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)).to(self.device, self.dtype)
            features = self.model(x).last_hidden_state  # [B, N, D]
            found: NDArray[np.float32] = features.float().cpu().contiguous().numpy()
        return found


def _give_large_blocks_back() -> None:
    """Freed blocks of up to 32 MiB are kept by glibc for later; a view's tensors then take a third more room."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


#: transformers replaces methods of its base class while it loads: two loads at once leave them replaced for ever
_LOADING = threading.Lock()


def _load(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, *, int8: bool) -> torch.nn.Module:
    mapped = Mapped({name: one for name, one in checkpoint.stored.items() if name.startswith(VISION)})
    state = {name.removeprefix(VISION): tensor for name, tensor in mapped.tensors.items()}
    types = {tensor.dtype for tensor in state.values()}
    if device.type == "cpu":
        kind = torch.int8 if int8 else dtype
        copied = sum(tensor.numel() for tensor in state.values() if tensor.dtype != kind)  # the rest stays in its file
        need_memory(copied * kind.itemsize, f"the vision tower in {str(kind).removeprefix('torch.')}")
    logging: Any = transformers_logging  # untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    load: Any = Step3p7VisionModel.from_pretrained  # its return type depends on output_loading_info
    try:
        with _LOADING:
            model, report = load(
                None,
                config=Step3p7VisionConfig(**checkpoint.config.vision),
                state_dict=state,
                dtype=types.pop() if len(types) == 1 else dtype,  # as stored, it copies queries and keys only
                attn_implementation="sdpa",
                output_loading_info=True,
            )
    finally:
        if shown:
            logging.enable_progress_bar()
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise CheckpointError(
                f"{checkpoint.path}: transformers reports {problem} {sorted(report[problem])[:3]} for the tower; "
                "the checkpoint is of another model or this version of transformers is not supported"
            )
    if int8:
        for name in [name for name, module in model.layers.named_modules() if isinstance(module, torch.nn.Linear)]:
            model.layers.set_submodule(name, Int8Linear(model.layers.get_submodule(name)))
            mapped.release()
    for parameter in model.parameters():  # not buffers: angles stay in float32
        parameter.data = parameter.data.to(device, dtype)
        mapped.release()
    loaded: torch.nn.Module = model.to(device).eval().requires_grad_(False)
    for name in ("downsampler1", "downsampler2"):
        setattr(loaded, name, _Folded(getattr(loaded, name)))
    for layer in model.layers:
        layer.self_attn, layer.mlp = _Attention(layer.self_attn), _Mlp(layer.mlp)
    return loaded


class _Attention(torch.nn.Module):
    """transformers' own, with queries and keys turned a block of tokens at a time, in their place.

    Turning happens in float32, and all at once holds six copies of a view beside each other.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.out_proj, self.head_dim = attention.out_proj, attention.head_dim

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], **_: Any
    ) -> tuple[torch.Tensor, None]:  # [B, N, C]
        of_heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (project(hidden_states).view(of_heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        blocks = (tensor.split(BLOCK, dim=-2) for tensor in position_embeddings)
        for some_q, some_k, cos, sin in zip(q.split(BLOCK, dim=1), k.split(BLOCK, dim=1), *blocks, strict=True):
            for turned, to in zip(apply_rotary_pos_emb_vision(some_q, some_k, cos, sin), (some_q, some_k), strict=True):
                to.copy_(turned)
        mixed = torch.nn.functional.scaled_dot_product_attention(*(one.transpose(1, 2) for one in (q, k, v)))
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


class _Mlp(torch.nn.Module):
    """transformers' own, for a block of tokens at a time.

    Its widest tensors, 8 960 numbers a token in the released tower, then never hold a whole view of 728 px.
    """

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.fc1, self.activation_fn, self.fc2 = mlp.fc1, mlp.activation_fn, mlp.fc2
        if isinstance(self.activation_fn, QuickGELUActivation):
            self.activation_fn = _QuickGelu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, N, C]
        blocks = x.split(BLOCK, dim=1)
        return torch.cat([self.fc2(self.activation_fn(self.fc1(block))) for block in blocks], dim=1)


class _QuickGelu(torch.nn.Module):
    """transformers' own to the last bit, with one copy of the largest tensor beside it instead of two."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1.702 * x).sigmoid_().mul_(x)


class _Folded(torch.nn.Module):
    """A convolution with kernel 3, stride 2 and padding 1 as a product, which needs no second copy of its weights.

    On a CPU, ``Conv2d`` brings them into another order in every call: 0.34 GB for the released tower in bfloat16.
    """

    def __init__(self, conv: torch.nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None, "the released tower has biases"
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] → [B, C', ⌈H/2⌉, ⌈W/2⌉]
        batch, _, height, width = x.shape
        patches = torch.nn.functional.unfold(x, 3, padding=1, stride=2)  # [B, 9C, N]
        weight = self.weight.flatten(1).expand(batch, -1, -1)
        found: torch.Tensor = torch.baddbmm(self.bias[:, None], weight, patches)  # [B, C', N]
        return found.reshape(batch, -1, (height + 1) // 2, (width + 1) // 2)
