"""The identity probe of a checkpoint: computed layer by layer, kept by a split, and what it tells apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.identity_probe import measure, noisy
from edge_server.engine.qwen3 import load_qwen3
from edge_server.token_embedding import TokenEmbedding
from tofc.codec.fake import fake_weights
from tofc.errors import CheckpointError
from tofc.model.checkpoint import Checkpoint
from tofc.model.identity_probe import FILE, LIKELIEST, TOLERANCE, IdentityProbe
from tofc.model.shipped import NANO
from tofc_lab.checkpoint import fake
from tofc_lab.checkpoint.probe import compute_probe
from tofc_lab.checkpoint.split import split
from tofc_lab.cli import app


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "model"
    fake.write(path, tied=request.param, dtype=torch.bfloat16)
    fake_weights(D=128, H=32).save(path)
    return path


def test_layer_by_layer_gives_what_the_whole_decoder_gives(whole: Path) -> None:
    checkpoint = Checkpoint.open(whole, "server")
    model, embed = load_qwen3(checkpoint), TokenEmbedding(checkpoint)
    probe = compute_probe(checkpoint, "an id")
    assert len({tuple(one.ids) for one in probe.prompts}) == 8
    for one in probe.prompts:
        with torch.inference_mode():
            logits = model(inputs_embeds=torch.from_numpy(embed(one.ids))[None]).logits[0, -1]
        wanted = logits.log_softmax(-1).topk(LIKELIEST)
        assert dict(zip(wanted.indices.tolist(), wanted.values.tolist(), strict=True)) == pytest.approx(
            dict(one.likeliest), abs=1e-4
        )


def test_nanos_probe_is_that_of_its_weights() -> None:
    shipped, checkpoint = IdentityProbe.read(NANO), Checkpoint.open(NANO)
    assert shipped.model_id == checkpoint.model_id
    for one, again in zip(shipped.prompts, compute_probe(checkpoint, "").prompts, strict=True):
        assert list(one.ids) == list(again.ids)
        assert dict(one.likeliest) == pytest.approx(dict(again.likeliest), abs=1e-3)


def test_a_split_writes_it_and_adds_it_to_a_half_of_an_earlier_version(whole: Path, tmp_path: Path) -> None:
    halves = split(whole, tmp_path)
    written = (halves.server / FILE).read_text()
    assert json.loads(written)["model_id"] == halves.model_id
    assert not (halves.device / FILE).exists()
    assert FILE in (halves.server / "SHA256SUMS").read_text()
    (halves.server / FILE).unlink()
    with pytest.raises(CheckpointError, match=f"has no {FILE}, which .* write it: tofc-lab probe {halves.server}"):
        IdentityProbe.read(halves.server)
    split(whole, tmp_path)
    assert (halves.server / FILE).read_text() == written
    (halves.server / FILE).unlink()
    done = CliRunner().invoke(app, ["probe", str(halves.server)])
    assert done.exit_code == 0 and halves.model_id in done.output
    assert (halves.server / FILE).read_text() == written


def test_another_number_format_passes_and_other_weights_do_not() -> None:
    own = dict(Checkpoint.open(NANO, "server").decoder_tensors())
    assert measure(own) < 0.001
    assert measure(own, torch.bfloat16) < TOLERANCE / 3
    assert measure(noisy(own, 0.03)) > TOLERANCE * 1.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format must be 1, got 2"),
        ({"prompts": []}, "must have prompts"),
        ({"prompts": [{"ids": [1]}]}, "is malformed"),
        ({"prompts": 7}, "is malformed"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, change: dict[str, object], said: str) -> None:
    shutil.copy(NANO / FILE, tmp_path)
    (tmp_path / FILE).write_text(json.dumps(json.loads((NANO / FILE).read_text()) | change))
    with pytest.raises(CheckpointError, match=said):
        IdentityProbe.read(tmp_path)
