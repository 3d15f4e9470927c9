"""A checkpoint with several codecs: each device chooses one by its name, and a server without an option takes all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from device_client.cli import app
from device_client.encoder import TowerEncoder
from device_client.link import Target
from device_client.rate import RateChoice
from device_client.report import Report
from device_client.session import Session
from edge_server.cli import app as server_app
from tests.e2e.conftest import MODEL, PICTURES, ServerThread
from tofc import CheckpointError, Client, MismatchError, UsageError
from tofc.codec import Codec
from tofc.codec.fake import fake_weights
from tofc.model.checkpoint import Checkpoint
from tofc.model.feature_codecs import CODEC_FILES
from tofc.model.open_image import open_image
from tofc_lab.checkpoint.split import split

PICTURE = MODEL / "example.jpg"  # the number on its sign is 42
SIGN = "what number is on the sign?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return nano with two more codecs: `other`, whose packets nano's codec cannot read, and `coarse`."""
    folder = Path(shutil.copytree(MODEL, tmp_path_factory.mktemp("model") / "nano"))
    shutil.rmtree(folder / "codecs", ignore_errors=True)
    config = Codec.load(MODEL).config
    fake_weights(D=config.feature_dim, H=config.hidden, seed=3).save(folder / "codecs" / "other")
    coarse = folder / "codecs" / "coarse"
    coarse.mkdir()
    for name in CODEC_FILES:
        shutil.copyfile(folder / name, coarse / name)
    text = json.loads((coarse / "codec.json").read_text())
    (coarse / "codec.json").write_text(json.dumps(text | {"preset": "low"}))
    return folder


@pytest.fixture(scope="module")
def several(model: Path) -> Iterator[ServerThread]:
    made = ServerThread(model=model)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def only(model: Path) -> Iterator[ServerThread]:
    made = ServerThread(model=model, feature_codec="coarse")
    yield made
    made.stop()


async def ask(server: ServerThread, encoder: TowerEncoder) -> Report:
    async with Session(Target(address=server.address), encoder) as session:
        return await session.ask([session.open(PICTURE)], SIGN).result()


def client(*words: object, **environment: str) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env=environment)


async def test_one_server_takes_the_packets_of_every_codec(model: Path, several: ServerThread) -> None:
    sizes = {}
    for name in ("default", "coarse", "other"):
        report = await ask(several, TowerEncoder.open(model, feature_codec=name))
        # Features are merged, encoded and decoded; a wrong codec refuses the packet (CORRUPT_PACKET).
        assert report.feature_codec == name and report.views_sent == 1
        encoder = TowerEncoder.open(model, feature_codec=name)
        encoder.load()
        (packet,) = (one.packet for one in encoder.encode(open_image(PICTURE)))
        assert report.bytes_picture == len(packet)
        codec = Codec.load(model if name == "default" else model / "codecs" / name)
        assert report.features == len(codec.decode(packet).features)
        sizes[name] = len(packet)
        if name != "other":
            assert report.answer == "42"
    assert sizes["coarse"] < sizes["default"]


async def test_the_rows_are_those_of_the_named_codec(model: Path, several: ServerThread) -> None:
    """Two codecs with the same format and the same picture: only the dequantised features can tell them apart."""
    checkpoint = Checkpoint.open(model)
    other = Codec.load(model / "codecs" / "other")
    rng = np.random.default_rng(0)
    packet = other.encode(rng.standard_normal((36, other.config.feature_dim)).astype(np.float32), 12)
    weight = checkpoint.projector_tensors()["vit_large_projector.weight"].float().numpy()
    decoded = other.decode(packet)
    wanted = decoded.features @ weight.T + other.grid_embedding(decoded.grid, decoded.positions)
    assembler = several.running.backend.assembler
    (rows,) = assembler.views(packet, codec_id=checkpoint.codec_id_of("other"), count=1, last=True)
    np.testing.assert_allclose(rows, wanted, atol=1e-3)


async def test_a_picture_is_cached_for_its_codec(
    model: Path, several: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same picture under another codec is sent again, and its rows are not mixed with the first ones."""
    monkeypatch.setattr("device_client.link.HOLD_S", 0.0)  # so the server says what it has before a view is encoded
    choice = RateChoice(features=7)
    first, second = (TowerEncoder.open(model, choice, feature_codec=name) for name in ("default", "coarse"))
    assert (await ask(several, first)).views_sent == 1
    assert (await ask(several, second)).views_sent == 1
    assert (await ask(several, first)).views_sent == 0


async def test_halves_keep_their_codecs(model: Path, tmp_path: Path) -> None:
    halves = split(model, tmp_path)
    assert set(halves.codecs) == {"coarse", "other"}
    server = ServerThread(model=tmp_path)
    try:
        report = await ask(server, TowerEncoder.open(tmp_path, feature_codec="coarse"))
        assert (report.answer, report.feature_codec) == ("42", "coarse")
    finally:
        server.stop()
    fake_weights(D=768, H=Codec.load(MODEL).config.hidden, seed=4).save(halves.device / "codecs" / "other")
    with pytest.raises(CheckpointError, match=r"codecs/other is \w{16}, but this half was split with the codec \w{16}"):
        _ = TowerEncoder.open(tmp_path, feature_codec="other").codec_id


def test_the_command_uses_the_named_codec(model: Path, several: ServerThread) -> None:
    common = ("ask", PICTURE, SIGN, "--model", model, "--server", several.address)
    assert "codec" not in client(*common).stderr
    named = client(*common, "--feature-codec", "coarse")
    assert (named.exit_code, named.stdout) == (0, "42\n")
    found = json.loads(client(*common, "--json", TOFC_DEVICE_FEATURE_CODEC="coarse").stdout)
    assert (found["answer"], found["feature_codec"]) == ("42", "coarse")
    assert json.loads(client(*common, "--json").stdout)["feature_codec"] == "default"
    image = client(*common, "--mode", "image", "--feature-codec", "coarse")
    assert image.exit_code == 2 and "--feature-codec coarse belongs to --mode features" in image.stderr


def test_the_cost_names_the_codec(model: Path, several: ServerThread, tmp_path: Path) -> None:
    done = client("ask", PICTURES / "picture-00.jpg", SIGN, "--model", model, "--server", several.address,
                  "--feature-codec", "other")  # fmt: skip
    assert (done.exit_code, "(codec other, 1 view, " in done.stderr) == (0, True)
    drawn = client("inspect", PICTURE, "--out", tmp_path / "map.png", "--model", model, "--feature-codec", "coarse")
    assert drawn.exit_code == 0 and "in 1 view, codec coarse; a feature's index takes " in drawn.stderr


def test_a_name_that_the_checkpoint_lacks(model: Path, several: ServerThread, tmp_path: Path) -> None:
    for command in (["ask", PICTURE, SIGN], ["chat", PICTURE], ["inspect", PICTURE, "--out", tmp_path / "map.png"]):
        for wrong in ("none", "../other", "codecs/other"):
            done = client(*command, "--model", model, f"--feature-codec={wrong}")
            assert done.exit_code == 2 and done.stderr.count("\n") == 1
            wanted = f"must name a codec of {model}, got {wrong!r}; its codecs are default, coarse, other"
            assert wanted in done.stderr
    refused = pytest.raises(CheckpointError, match=r"^feature_codec must name a codec .* default, coarse, other")
    with Client(several.address, model=model, feature_codec="none") as edge, refused:
        edge.picture(PICTURE)
    served = CliRunner().invoke(server_app, ["serve", "--model", str(model), "--port=0", "--feature-codec=none"])
    assert served.exit_code == 2 and "its codecs are default, coarse, other" in served.stderr


def test_a_server_of_one_codec_explains_what_it_refuses(model: Path, only: ServerThread) -> None:
    with Client(only.address, model=model) as edge, pytest.raises(MismatchError) as refused:
        edge.picture(PICTURE).ask(SIGN)
    checkpoint = Checkpoint.open(model)
    text = str(refused.value)
    assert f"the device uses the codec default ({checkpoint.codec_id}) of this model" in text
    assert f"--feature-codec for coarse (index, {checkpoint.codec_id_of('coarse')})" in text
    assert "Give the device --feature-codec coarse; or start the server with --feature-codec default" in text
    with Client(only.address, model=model, feature_codec="coarse") as edge:
        assert edge.picture(PICTURE).ask(SIGN).text == "42"


def test_a_codec_that_the_server_does_not_have(model: Path, server: ServerThread) -> None:
    with Client(server.address, model=model, feature_codec="other") as edge, pytest.raises(MismatchError) as refused:
        edge.picture(PICTURE).ask(SIGN)
    checkpoint = Checkpoint.open(model)
    assert refused.value.reason == "CODEC_MISMATCH"
    assert f"the device has codec '{checkpoint.codec_id_of('other')}'" in str(refused.value)
    assert f"default (index, {checkpoint.codec_id})" in str(refused.value)


def test_info_names_the_codecs(several: ServerThread, only: ServerThread, server: ServerThread, model: Path) -> None:
    checkpoint = Checkpoint.open(model)

    def lines(of: ServerThread) -> list[str]:
        return [
            one for one in CliRunner().invoke(server_app, ["info", of.address]).stdout.splitlines() if "codec" in one
        ]

    ids = {name: checkpoint.codec_id_of(name) for name in ("default", "coarse", "other")}
    assert lines(several) == [
        f"codec_id: {ids['default']}",
        *(f"codec {name}: {codec_id} ({'context' if name == 'other' else 'index'})" for name, codec_id in ids.items()),
    ]
    assert lines(only) == [f"codec_id: {ids['coarse']}", f"codec coarse: {ids['coarse']} (index)"]


def test_both_halves_in_one_process(model: Path) -> None:
    with Client(":local:", model=model, feature_codec="coarse") as edge:
        assert edge.picture(PICTURE).ask(SIGN).text == "42"
        assert [codec.name for codec in edge._connection._local._running.backend.codecs if codec.served] == ["coarse"]  # type: ignore[union-attr]


def test_image_files_belong_to_the_default_codec(model: Path) -> None:
    from edge_server.settings import IMAGE_BYTES, IMAGE_PIXELS, ServerSettings, SessionLimits

    limits = SessionLimits(image_bytes=IMAGE_BYTES, image_pixels=IMAGE_PIXELS)
    with pytest.raises(UsageError, match="--feature-codec coarse excludes --take-images"):
        ServerSettings(model=model, feature_codec="coarse", limits=limits)
    assert ServerSettings(model=model, feature_codec="default", limits=limits).take_images


def test_a_damaged_codec_is_named_and_can_be_left_out(model: Path, tmp_path: Path) -> None:
    from edge_server import backend as backends
    from edge_server.settings import ServerSettings

    folder = Path(shutil.copytree(model, tmp_path / "nano"))
    (folder / "codecs" / "other" / "codec.json").write_text("{}")
    with pytest.raises(UsageError, match=r"the codec other in .*codecs/other: .*format must be .*--feature-codec NAME"):
        backends.load(ServerSettings(model=folder))
    (folder / "codecs" / "other" / "codec.safetensors").unlink()
    found = backends.load(ServerSettings(model=folder, feature_codec="default")).codecs
    assert [(codec.name, codec.served) for codec in found] == [("default", True), ("coarse", False)]
