"""The whole model in one process, built from its checkpoint without any code of `tofc`.

    pixels ─ reference_tower ─ vit_large_projector ─┐
    question ─ chat template ─ ids ─ embed_tokens ──┴─ on <im_patch> ─ Qwen3ForCausalLM ─ logits, greedy answer

Promises an independent check of device and server: it has its own code to read files, build prompts and connect the
networks, and shares with them only transformers' decoder and the pixels. Leaves out packets and the codec's grid
embedding. One part is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from tofc_lab.verify import reference_lite, reference_tower


@dataclass(frozen=True, kw_only=True)
class Reply:
    """`logits` [K, V] of the prompt's last K positions, and the ids of the greedy answer with their margins."""

    logits: NDArray[np.float32]
    answer: list[int]
    margins: list[float]  # logit of each token minus that of the second most likely one


@dataclass(frozen=True, kw_only=True)
class WholeModel:
    """A checkpoint whose tensors are read when they are needed; `open` makes one."""

    config: dict[str, Any]
    dtype: torch.dtype
    _tokenizer: Path
    _files: dict[str, Path]  # by released name
    _stored: dict[str, str]  # name in the file by released name

    @classmethod
    def open(cls, model: Path, dtype: torch.dtype = torch.float32) -> Self:
        """Read the names of all tensors in a checkpoint's folder, or in the folder with both its halves."""
        halves = not (model / "config.json").exists()
        folders = [model / "device", model / "server"] if halves else [model]
        config = model / "server" / "split_config.json" if halves else model / "config.json"
        files: dict[str, Path] = {}
        names: dict[str, str] = {}
        for file in (file for folder in folders for file in sorted(folder.glob("*.safetensors"))):
            if file.name != "codec.safetensors":
                with safe_open(file, framework="pt") as opened:
                    for stored in opened.keys():  # noqa: SIM118 - not a dictionary
                        bare = stored.removeprefix("model.")
                        name = bare if bare.startswith("vi") else stored  # vision_model., vit_large_projector.
                        files[name], names[name] = file, stored
        return cls(
            config=json.loads(config.read_bytes()), dtype=dtype, _tokenizer=folders[-1], _files=files, _stored=names
        )

    def tensor(self, name: str) -> Tensor:
        """Read one tensor by its released name, as it is stored."""
        with safe_open(self._files[name], framework="pt") as opened:
            found: Tensor = opened.get_tensor(self._stored[name])
        return found

    def features(self, pixels: NDArray[np.float32]) -> Tensor:
        """Return the features [N, D] of a view's pixels [3, S, S], in float64."""
        raw = self.config["vision_config"]

        def read(name: str) -> Tensor:
            return self.tensor(f"vision_model.{name}")

        if raw.get("model_type") == "efficientnet_lite2":
            return reference_lite.features(read, torch.from_numpy(pixels))
        return reference_tower.features(
            read,
            torch.from_numpy(pixels),
            heads=raw.get("heads") or raw["num_attention_heads"],
            layers=raw.get("layers") or raw["num_hidden_layers"],
        )

    def visual(self, features: Sequence[Tensor]) -> Tensor:
        """Return the projected features [F, H] of all views, from the features [N, D] of each in prompt order."""
        weight = self.tensor("vit_large_projector.weight").to(self.dtype)
        bias = self.tensor("vit_large_projector.bias").to(self.dtype) if self.config.get("projector_bias") else None
        return torch.cat([torch.nn.functional.linear(one.to(self.dtype), weight, bias) for one in features])

    def prompt_ids(self, question: str, rows: int, columns: int, crop: int, whole: int) -> list[int]:
        """Return the tokens of one picture and a question, written as one text and tokenised at once.

        `crop` and `whole` are the numbers of features of a crop and of the global view.
        """
        one = f"<patch_start>{'<im_patch>' * crop}<patch_end>"
        picture = "<patch_newline>".join([one * columns] * rows) + f"<im_start>{'<im_patch>' * whole}<im_end>"
        load: Any = AutoTokenizer.from_pretrained  # untyped
        tokenizer = load(self._tokenizer, local_files_only=True, trust_remote_code=False)
        turns = [{"role": "user", "content": picture + question}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return [int(one) for one in tokenizer(text, add_special_tokens=False)["input_ids"]]

    def reply(self, ids: Sequence[int], visual: Tensor, *, most: int, keep: int) -> Reply:
        """Run the decoder on a prompt with `visual` [F, H] in place of <im_patch>; generate exactly `most` tokens."""
        text = {key: value for key, value in self.config["text_config"].items() if "dtype" not in key}
        decoder = self._decoder(Qwen3Config(**text))
        with torch.inference_mode():
            tokens = torch.tensor([list(ids)])
            embeds = decoder.get_input_embeddings()(tokens)
            embeds[tokens == self.config["image_token_id"]] = visual.to(embeds.dtype)
            logits = decoder(inputs_embeds=embeds, logits_to_keep=keep).logits[0]
            decoder.generation_config.eos_token_id = None
            decoder.generation_config.pad_token_id = 0
            found = decoder.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=most,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        first, second = torch.stack(found.logits)[:, 0].float().topk(2).values.unbind(-1)
        return Reply(
            logits=logits.float().numpy(), answer=found.sequences[0].tolist(), margins=(first - second).tolist()
        )

    def _decoder(self, config: Qwen3Config) -> Any:
        state = {name: self.tensor(name) for name in sorted(self._files) if name.startswith(("model.", "lm_head."))}
        load: Any = Qwen3ForCausalLM.from_pretrained  # untyped
        with quiet():
            network = load(None, config=config, state_dict=state, dtype=self.dtype, attn_implementation="sdpa")
        return network.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars, and its warning that it does not know this family's configuration."""
    logging: Any = transformers_logging  # untyped
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
