"""How often a photo checkpoint answers as it should about held-out photographs, by kind of question and quality.

Promises photographs that the training never saw: those of the split `validation`. What a picture shows is known by
construction or by the classifier, so this measures the decoder and the codec, not the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tofc.codec.codec import Codec
from tofc.model.checkpoint import Checkpoint
from tofc.model.prompt import load_tokenizer
from tofc_lab.nano.answerer import Answerer, Reduce, merging, visual_input
from tofc_lab.nano.evaluate import accuracy, coded, intervals, mean_size, score
from tofc_lab.nano.packing import Packer
from tofc_lab.nano.unpack import answerer_of
from tofc_lab.photo import teacher
from tofc_lab.photo.asked_scenes import AskedScene
from tofc_lab.photo.decoder import draw_questions
from tofc_lab.photo.tower import Reader

TURNS = 10  # questions about each picture


CLEAR = 0.5  # probability from which a reader says what a cell shows


def evaluate(model: Path, scenes: Sequence[AskedScene], reader: Reader, *, seed: int = 5) -> dict[str, Any]:
    """Return accuracy by family with uncompressed features and at each preset, and how sure answers to "what" are.

    At each preset also the share of cells of which the tower's reader says the same as before (`read_again`).
    """
    checkpoint = Checkpoint.open(model)
    answerer, codec = answerer_of(checkpoint), Codec.load(checkpoint.codec_path)
    packer = Packer(load_tokenizer(checkpoint))
    rng = np.random.default_rng(seed)
    asked = [draw_questions(rng, one, TURNS) for one in scenes]
    ways: dict[str, Reduce] = {"uncompressed": merging()}
    for name, rate in codec.config.presets.items():
        count, quality = codec.config.rates[rate]
        ways[name] = coded(codec, count, quality)
    found: dict[str, Any] = {"seed": seed, "pictures": len(scenes)}
    for name, reduce in ways.items():
        outcomes = score(answerer, packer, scenes, reduce, chosen=asked)
        found[name] = {"bytes": mean_size(outcomes), "accuracy": accuracy(outcomes), "interval": intervals(outcomes)}
        if name in codec.config.presets:
            found[name]["read_again"] = read_again(reader, scenes, reduce)
    return found | {"what": sureness(answerer, packer, scenes)}


@torch.no_grad()
def read_again(reader: Reader, scenes: Sequence[AskedScene], reduce: Reduce) -> dict[str, float]:
    """Return the share of clear cells in which the reader sees the same name, and the same colour, after a codec."""
    before, after = [], []
    for scene in scenes:
        view = scene.features.astype(np.float32)
        kept, cells, _ = reduce(view)
        before.append(view[cells])
        after.append(kept)
    found = {}
    for name, head in (("name", reader.names), ("colour", reader.colours)):
        sure, was = head(torch.from_numpy(np.concatenate(before))).softmax(-1).max(-1)
        now = head(torch.from_numpy(np.concatenate(after))).argmax(-1)
        found[name] = (now == was)[sure > CLEAR].float().mean().item()
    return found


@torch.no_grad()
def sureness(answerer: Answerer, packer: Packer, scenes: Sequence[AskedScene]) -> dict[str, float]:
    """Return the share of "what" questions that get another answer than "not sure", and how many of these are right.

    A name is one token, so the first token tells.
    """
    asked = [[one for one in scene.questions if one.family == "what"][:1] for scene in scenes]
    kept = [(scene, questions) for scene, questions in zip(scenes, asked, strict=True) if questions]
    batch = packer.pack(
        [visual_input(scene, merging()) for scene, _ in kept], [questions for _, questions in kept], independent=True
    )
    given = answerer(batch).argmax(-1)
    wanted = batch.targets[batch.targets >= 0]
    owner = batch.owner[batch.targets >= 0]
    first = torch.cat((torch.tensor([True]), owner[1:] != owner[:-1]))
    unsure = packer.tokenizer(teacher.NOT_SURE, add_special_tokens=False)["input_ids"][0]
    answered = given[first] != unsure
    right = (given == wanted)[first][answered].float()
    return {"answered": answered.float().mean().item(), "right where answered": right.mean().item()}
