"""nano's prompts about the test pictures, made as a server makes them, and transformers' own answers to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from device_client.encoder import TowerEncoder
from edge_server.assemble import PictureRows, SplitAssembler
from edge_server.engine.base import Prompt
from edge_server.token_embedding import TokenEmbedding
from tofc.codec.codec import Codec
from tofc.model.checkpoint import Checkpoint
from tofc.model.generation import stop_tokens
from tofc.model.open_image import open_image
from tofc.model.projector import Projector
from tofc.model.prompt import Turn, load_tokenizer
from tofc.model.shipped import NANO
from tofc.model.views import plan, views

PICTURES = Path(__file__).resolve().parents[1] / "e2e" / "pictures"
LONG = 24  # tokens of an answer that does not end by itself


@dataclass(frozen=True, kw_only=True)
class Nano:
    """Prompts, each with what transformers answers to it."""

    prompts: Sequence[Prompt]
    stop_tokens: frozenset[int]
    assembler: SplitAssembler
    pictures: Sequence[PictureRows]  # of the prompts, one each

    @cached_property
    def answers(self) -> list[list[int]]:
        """Greedy answers without the stop token."""
        return [self._generate(prompt, 16, sorted(self.stop_tokens)) for prompt in self.prompts]

    @cached_property
    def long_answers(self) -> list[list[int]]:
        """LONG tokens each, as if no token ended an answer."""
        return [self._generate(prompt, LONG, []) for prompt in self.prompts]

    def conversation(self, client: str, *turns: str) -> Prompt:
        """Make a prompt about the first picture: questions and answers in turn."""
        said = [Turn(role=("user", "assistant")[number % 2], text=text) for number, text in enumerate(turns)]
        return replace(self.assembler.prompt(said, self.pictures[:1], 8000).prompt, client=client)

    def _generate(self, prompt: Prompt, most: int, stop: list[int]) -> list[int]:
        found = _decoder().generate(
            inputs_embeds=torch.from_numpy(prompt.embeds)[None],
            attention_mask=torch.ones(1, len(prompt.embeds), dtype=torch.long),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=stop or None,
            pad_token_id=0,
        )
        return [int(token) for token in found[0] if token not in stop]


_decoders: list[Qwen3ForCausalLM] = []


def _decoder() -> Qwen3ForCausalLM:
    """Return the decoder as transformers runs it by itself, apart from the one that an engine runs."""
    if not _decoders:
        checkpoint = Checkpoint.open(NANO)
        model = Qwen3ForCausalLM(Qwen3Config(**checkpoint.config.text)).eval()
        model.load_state_dict({name: tensor.float() for name, tensor in checkpoint.decoder_tensors().items()})
        model.generation_config.eos_token_id = None
        _decoders.append(model)
    return _decoders[0]


def load_nano() -> Nano:
    """Encode and decode every test picture, and make the prompt of each question about one."""
    checkpoint = Checkpoint.open(NANO)
    encoder = TowerEncoder.open(NANO)
    encoder.load()
    tokenizer = load_tokenizer(checkpoint)
    assembler = SplitAssembler(
        config=checkpoint.config,
        codecs={"id": Codec.load(checkpoint.codec_path)},
        projector=Projector(checkpoint),
        tokenizer=tokenizer,
        embed=TokenEmbedding(checkpoint),
    )
    lines = json.loads((PICTURES / "questions.json").read_text())
    pictures: dict[str, PictureRows] = {}
    for name in dict.fromkeys(line["image"] for line in lines):
        image = open_image(PICTURES / name)
        cut = plan(*image.size, checkpoint.config.rule)
        count = len(list(views(image, checkpoint.config.rule)))
        rows = [
            rows
            for one in encoder.encode(image)
            for rows in assembler.views(one.packet, codec_id="id", count=1, last=one.index == count - 1)
        ]
        pictures[name] = PictureRows(rows=cut.rows, columns=cut.columns, views=rows)
    prompts = [
        assembler.prompt([Turn(role="user", text=line["question"])], [pictures[line["image"]]], 8000).prompt
        for line in lines
    ]
    return Nano(
        prompts=prompts,
        stop_tokens=frozenset(stop_tokens(checkpoint, tokenizer.eos_token_id)),
        assembler=assembler,
        pictures=[pictures[line["image"]] for line in lines],
    )
