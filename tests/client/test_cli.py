from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from device_client import cli, options
from device_client.encoder import EncoderThread
from device_client.fake import FakeEncoder
from device_client.picture import Picture
from device_client.report import Comparison, compare
from tests.client.conftest import FakeServer
from tofc.errors import CallError, LimitError, MismatchError, TokenError
from tofc.model.checkpoint import ModelIdentity
from tofc.model.image_codec import compress
from tofc.model.open_image import open_image
from tofc.model.shipped import NANO
from tofc.model.views import ViewRule


def command(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in arguments], env=environment)


def ask(server: FakeServer, *arguments: object, **environment: str) -> Result:
    return command("ask", *arguments, "--server", f"127.0.0.1:{server.port}", **environment)


def test_answer_on_stdout_cost_on_stderr(serving: FakeServer, encoders: list[FakeEncoder], small: Path) -> None:
    result = ask(serving, small, "is it grey?", "--features", 12)
    assert (result.exit_code, result.stdout) == (0, "yes to is it grey?\n")
    (line,) = result.stderr.splitlines()
    parts = ("picture 100 B (1 view, 36 features)", "on the socket", "as JPEG", "WebP", "200×160", "the file itself")
    for part in (*parts, "prefill 2", "first token", "total"):
        assert part in line
    assert encoders[0].setting == "12 features, 12 of a crop, quality 1" and encoders[0].loaded == 1


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")],
    ids=repr,
)
def test_a_device_without_memory_says_so(
    serving: FakeServer, small: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(options, "TowerEncoder", type("Opened", (), {"open": lambda *_: FakeEncoder(before_view=full)}))
    result = ask(serving, small, "why?")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"device-client: this device has not enough memory for {small}; end other programs")
    monkeypatch.setattr(options, "TowerEncoder", type("Opened", (), {"open": full}))
    if isinstance(error, MemoryError):
        result = ask(serving, small, "why?")
        assert (result.exit_code, result.stderr.partition(" (")[0]) == (2, "device-client: not enough memory")


def test_a_comparison_that_finds_no_memory_is_left_out(
    serving: FakeServer, encoders: list[FakeEncoder], small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("device_client.report._file_bytes", full)
    result = ask(serving, small, "why?")
    assert (result.exit_code, result.stdout) == (0, "yes to why?\n") and "JPEG" not in result.stderr


def test_several_questions_send_the_picture_once(serving: FakeServer, encoders: list[FakeEncoder], small: Path) -> None:
    result = ask(serving, small, "-q", "one", "-q", "two")
    assert result.stdout == "yes to one\nyes to two\n"
    first, second = result.stderr.splitlines()
    assert "picture 100 B" in first and "picture 0 B: the server has it" in second and "JPEG" not in second
    assert serving.kinds().count("view") == 1


def test_pictures_are_compared_once(
    serving: FakeServer, encoders: list[FakeEncoder], small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def count(pictures: list[Picture], rule: ViewRule) -> Comparison | None:
        compared.append(len(pictures))
        return compare(pictures, rule)

    monkeypatch.setattr("device_client.ask.compare", count)
    assert "JPEG" in ask(serving, small, "-q", "one", "-q", "two").stderr
    assert compared == [1]
    lines = ask(serving, small, "-q", "one", "-q", "two", "--json").stdout.splitlines()
    assert [json.loads(line)["comparison"]["quality"] for line in lines] == [75, 75] and compared == [1, 1]


@pytest.mark.parametrize(
    ("pieces", "shown", "empty"),
    [
        ([""], "\n", True),
        ([" ", "\n"], " \n", True),
        (["\n", "\nyes", "\n", "\n"], "yes\n", False),
        (["a\n", "\n", "b\n"], "a\n\nb\n", False),
        (["\x1b[2", "J\x07yes\x9b", "\x00\r\n\tno"], "\\x1b[2J\\x07yes\\x9b\\x00\\x0d\n\tno\n", False),
    ],
)
def test_an_answer_is_at_least_one_line_and_cannot_control_a_terminal(
    serving: FakeServer, encoders: list[FakeEncoder], small: Path, pieces: list[str], shown: str, empty: bool
) -> None:
    serving.tokens = [{"text": piece} for piece in pieces]
    result = ask(serving, small, "-q", "one", "-q", "two", "-q", "three")
    assert (result.exit_code, result.stdout) == (0, 3 * shown)
    assert result.stderr.count("the answer is empty") == 3 * empty
    found = json.loads(ask(serving, small, "one", "--json").stdout)
    assert found["answer"] == "".join(pieces), "JSON has the exact text"


@pytest.mark.parametrize("question", ["q" * 300, "a\nb", "\ufeffwhy?\r\n", "x" * 9000, "\u2028"])
def test_any_text_beside_q_is_a_question(
    serving: FakeServer, encoders: list[FakeEncoder], small: Path, question: str
) -> None:
    result = ask(serving, small, question, "-q", "two")
    asked = [one.question for one in serving.received("ask")]
    if question.strip():
        assert result.exit_code == 0 and asked == [question.strip().strip("\ufeff"), "two"]
    else:
        assert result.exit_code == 2 and "the question is empty" in result.stderr


def test_a_defect_of_the_comparison_is_not_dressed_up(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a defect")

    thread = EncoderThread(FakeEncoder())
    monkeypatch.setattr("device_client.report.input_size", broken)
    with pytest.raises(ValueError, match="a defect"):
        compare([thread.open(small)], thread.encoder.rule)


def test_a_picture_too_wide_for_webp_is_not_compared(tmp_path: Path) -> None:
    Image.new("RGB", (16_400, 520)).save(tmp_path / "wide.png")
    rule = ViewRule(global_size=336, crop_size=2048, max_side=20_000)
    thread = EncoderThread(FakeEncoder(rule=rule))
    try:
        assert compare([thread.open(tmp_path / "wide.png")], rule) is None
    finally:
        thread.close()


def test_json(serving: FakeServer, encoders: list[FakeEncoder], small: Path) -> None:
    result = ask(serving, small, small, "both?", "--json")
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["answer"] == "yes to both?" and found["bytes_picture"] == 100 and found["views"] == 2
    assert found["usage"]["new_tokens"] == 3 and found["timings"]["server_prefill"] == 2
    assert found["comparison"]["quality"] == 75 and found["comparison"]["file_bytes"] == 2 * small.stat().st_size
    assert {"bytes_up", "bytes_down", "features"} <= found.keys() and result.stderr == ""


def test_mode_image(serving: FakeServer, small: Path) -> None:
    origin = ModelIdentity.read(NANO)
    serving.model_id, serving.codec_id = origin.model_id, origin.codec_id
    arguments = (small, "what?", "--mode", "image")
    result = ask(serving, *arguments)
    assert result.exit_code == 5 and len(result.stderr.splitlines()) == 1
    assert "takes no images (--mode image); start it with `edge-server serve --take-images`" in result.stderr
    serving.limits.image_bytes = serving.limits.image_pixels = 1_000_000
    result = ask(serving, *arguments, "--codec", "webp", "--scale", "0.5")
    size = len(compress(open_image(small), "webp", 75, 0.5))
    assert (result.exit_code, result.stdout) == (0, "yes to what?\n")
    assert f"picture {size} B (as webp, quality 75, scale 0.5, 1 view, 36 features)" in result.stderr
    found = json.loads(ask(serving, *arguments, "--json", TOFC_DEVICE_QUALITY="30", TOFC_DEVICE_CODEC="avif").stdout)
    assert found["bytes_picture"] == len(compress(open_image(small), "avif", 30))
    assert (found["mode"], found["image_codec"], found["image_quality"]) == ("image", "avif", 30)


def test_a_batch_of_images(serving: FakeServer, small: Path, tmp_path: Path) -> None:
    origin = ModelIdentity.read(NANO)
    serving.model_id, serving.codec_id = origin.model_id, origin.codec_id
    serving.limits.image_bytes = serving.limits.image_pixels = 1_000_000
    lines = [{"image": "small.png", "question": question} for question in ("one", "two")]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out.jsonl"
    assert ask(serving, "--batch", tmp_path / "q.jsonl", "--out", out, "--mode", "image").exit_code == 0
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first["image"] == "small.png" and first["image_codec"] == "jpeg" and first["mode"] == "image"
    assert first["bytes_picture"] == len(compress(open_image(small), "jpeg", 75)) and second["bytes_picture"] == 0


def test_flags_are_environment_variables_too(serving: FakeServer, encoders: list[FakeEncoder], small: Path) -> None:
    server = f"127.0.0.1:{serving.port}"
    result = command("ask", small, "well?", TOFC_DEVICE_SERVER=server, TOFC_DEVICE_JSON="1", TOFC_DEVICE_FEATURES="5")
    assert json.loads(result.stdout)["answer"] == "yes to well?"
    assert encoders[0].setting == "5 features, 5 of a crop, quality 1"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["small.png", "  "], "the question is empty"),
        (["-q", "what?"], "give a picture and a question"),
        (["small.png"], "give a picture and a question"),
        ([], "give a picture and a question"),
        (["none.png", "what?"], "none.png does not exist"),
        (["words.png", "what?"], "words.png is not a picture"),
        (["huge.png", "what?"], "400 megapixels"),
        ([".", "what?"], "is a directory"),
        (["small.png", "what?", "--server", "nowhere"], "nowhere"),
        (["small.png", "what?", "--server", "127.0.0.1:0"], "--server must have a port above 0, got 127.0.0.1:0"),
        (["small.png", "what?", "--server", "192.0.2.1:50061"], "needs TLS and a token"),
        (
            ["small.png", "what?", "--temperature", "-1"],
            "--temperature must be 0 (always the most likely token)",
        ),
        (["small.png", "what?", "--timeout", "-1"], "--timeout must be 0 (no limit) or more seconds, got -1"),
        (["small.png", "what?", "--token-file", "none.txt"], "--token-file none.txt does not exist"),
        (["small.png", "what?", "--token-file", "words.png"], "a token is one line"),
        (["small.png", "what?", "--tls-ca", "words.png"], "words.png holds no certificate in PEM"),
        (["small.png", "what?", "--out", "x.jsonl"], "belong to --batch"),
        (["--batch", "q.jsonl"], "--batch needs --out"),
        (["--batch", "q.jsonl", "--out", "q.jsonl"], "--out q.jsonl is the file of --batch itself"),
        (["--batch", "q.jsonl", "--out", "words.png"], "words.png exists; resume where it ends with --resume"),
        (["--batch", "q.jsonl", "--out", "."], ".: is a directory"),
        (["--batch", "wide.jsonl", "--out", "o.jsonl"], "wide.jsonl is UTF-16 text; save it as UTF-8"),
        (["q" * 300, "what?"], "does not exist; give the path of a picture"),
        (["small.png", "small.png"], "the last argument must be the question, got the file 'small.png'"),
        (["https://example.org/a.png", "what?"], "is an address; pictures must be files on this machine"),
        (["small.png", "what?", "--token-file", "wide.jsonl"], "wide.jsonl is UTF-16 text; save it as UTF-8"),
        (["small.png", "what?", "--tls-ca", "wide.jsonl"], "wide.jsonl is UTF-16 text; save it as UTF-8"),
        (["small.png", "what?", "--batch", "q.jsonl", "--out", "o.jsonl"], "from the file"),
        (["small.png", "what?", "--mode", "images"], "--mode must be one of features, image, auto, got images"),
        (["small.png", "what?", "--codec", "webp"], "--codec webp belongs to --mode image"),
        (["small.png", "what?", "--quality", "50"], "--quality 50 belongs to --mode image"),
        (["small.png", "what?", "--mode", "features", "--scale", "0.5"], "--scale 0.5 belongs to --mode image"),
        (["small.png", "what?", "--mode", "image", "--features", "12"], "--features 12 belongs to --mode features"),
        (["small.png", "what?", "--mode", "image", "--preset", "low"], "--preset low belongs to --mode features"),
        (["small.png", "what?", "--mode", "image", "--budget-bytes", "99"], "--budget-bytes 99 belongs to --mode"),
        (["small.png", "what?", "--features", "0"], "--features must be 1 or more, got 0"),
        (["small.png", "what?", "--preset", "tiny"], "--preset tiny is not known; this codec has low, high"),
        (["small.png", "what?", "--budget-bytes", "0"], "--budget-bytes must be 1 or more, got 0"),
        (["small.png", "what?", "--budget-bytes", "99", "--preset", "low"], "exclude each other"),
        (["small.png", "what?", "--budget-bytes", "99", "--features", "9"], "exclude each other"),
        (
            ["small.png", "what?", "--mode", "image", "--codec", "gif"],
            "codec must be one of jpeg, webp, avif, jxl, got 'gif'",
        ),
        (
            ["small.png", "what?", "--mode", "image", "--quality", "0"],
            "quality must be 1 (smallest) to 100 (best), got 0",
        ),
        (
            ["small.png", "what?", "--mode", "image", "--quality", "101"],
            "quality must be 1 (smallest) to 100 (best), got 101",
        ),
        (["small.png", "what?", "--mode", "image", "--scale", "0"], "scale must be more than 0 and at most 1, got 0"),
        (
            ["small.png", "what?", "--mode", "image", "--scale", "1.5"],
            "scale must be more than 0 and at most 1, got 1.5",
        ),
        (["none.png", "what?", "--mode", "image"], "none.png does not exist"),
        (["words.png", "what?", "--mode", "image"], "words.png is not a picture"),
    ],
)
def test_wrong_use_is_one_line(
    encoders: list[FakeEncoder], small: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(small.parent)
    Path("words.png").write_text("no picture")
    Path("q.jsonl").write_text('{"image": "small.png", "question": "what?"}\n')
    Path("wide.jsonl").write_text('{"image": "small.png", "question": "what?"}\n', encoding="utf-16")
    if "huge.png" in arguments:
        Path("huge.png").write_bytes(png_header(20_000, 20_000))
    result = command("ask", "--server", "127.0.0.1:1", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and expected in result.stderr and len(result.stderr.splitlines()) == 1


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds almost nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data


def test_no_model(small: Path, tmp_path: Path) -> None:
    result = command("ask", small, "what?", "--model", tmp_path)
    assert result.exit_code == 2 and "no config.json" in result.stderr


def test_no_server_says_how_to_start_one(encoders: list[FakeEncoder], small: Path) -> None:
    result = command("ask", small, "what?", "--server", "127.0.0.1:1")
    assert result.exit_code == 3
    assert "no edge server at 127.0.0.1:1 (Connection refused); start one with `edge-server serve" in result.stderr


@pytest.mark.parametrize("refusal", [MismatchError("another codec"), TokenError(), LimitError("no room")])
def test_refused(serving: FakeServer, encoders: list[FakeEncoder], small: Path, refusal: CallError) -> None:
    serving.refusal = refusal
    result = ask(serving, small, "what?")
    assert result.exit_code == 5 and result.stderr == f"device-client: {refusal}\n"


def test_batch(serving: FakeServer, encoders: list[FakeEncoder], small: Path, tmp_path: Path) -> None:
    lines = [{"image": "small.png", "question": "one"}, {"image": "none.png", "question": "two"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("--batch", tmp_path / "q.jsonl", "--out", tmp_path / "out.jsonl")
    result = ask(serving, *arguments)
    assert result.exit_code == 4 and result.stdout == ""
    assert "line 2: " in result.stderr and "1 of 2 lines failed" in result.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    again = ask(serving, *arguments)
    assert again.exit_code == 2 and "--resume" in again.stderr
    resumed = ask(serving, *arguments, "--resume")
    assert resumed.exit_code == 4 and "holds all 2 answers already; 1 of them failed" in resumed.stderr


@pytest.mark.parametrize("error", [KeyError, ValueError, TypeError, AssertionError, RuntimeError])
@pytest.mark.parametrize("where", ["opening", "encoding"])
def test_a_defect_ends_a_batch_and_what_it_had_written_is_kept(
    serving: FakeServer, small: Path, wide: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], where: str
) -> None:
    def broken(index: int) -> None:
        if where == "encoding" and index == 1:  # of the wide picture
            raise error("a defect")

    opened = EncoderThread.open

    def opening(self: EncoderThread, path: Path) -> Picture:
        if where == "opening" and path.name == wide.name:
            raise error("a defect")
        return opened(self, path)

    monkeypatch.setattr(EncoderThread, "open", opening)
    opens = type("Opens", (), {"open": lambda *_: FakeEncoder(before_view=broken)})
    monkeypatch.setattr(options, "TowerEncoder", opens)
    lines = [{"image": image.name, "question": "one"} for image in (small, wide, small)]
    questions, out = small.with_name("q.jsonl"), small.with_name("out.jsonl")
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = ask(serving, "--batch", questions, "--out", out)
    assert isinstance(result.exception, error) and result.exception.args == ("a defect",), "nothing has dressed it up"
    assert [json.loads(line)["answer"] for line in out.read_text().splitlines()] == ["yes to one"]
    where = "nowhere"  # it is repaired
    assert ask(serving, "--batch", questions, "--out", out, "--resume").exit_code == 0
    assert [json.loads(line)["answer"] for line in out.read_text().splitlines()] == ["yes to one"] * 3


def test_ctrl_c_cancels_and_ends_quietly(
    serving: FakeServer, encoders: list[FakeEncoder], small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving.reply_start = "interrupt"

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("device_client.ask.show", interrupt)
    result = ask(serving, small, "what?")
    assert result.exit_code == 130
    assert result.stderr == "device-client: stopped\n"


def test_the_map_and_a_batchs_answers_have_separate_environment_variables(
    serving: FakeServer, encoders: list[FakeEncoder], small: Path, tmp_path: Path
) -> None:
    assert ask(serving, small, "what?", TOFC_DEVICE_INSPECT_OUT="map.png").exit_code == 0
    result = command("inspect", small, TOFC_DEVICE_INSPECT_OUT="map.jpg", TOFC_DEVICE_BATCH_OUT="map.png")
    assert "--out must be a name that ends in .png, got map.jpg" in result.stderr


def test_inspect_does_not_write_over_its_picture(small: Path) -> None:
    before = small.read_bytes()
    result = command("inspect", small, "--out", small)
    assert result.exit_code == 2 and "is the picture itself" in result.stderr and small.read_bytes() == before


def test_inspect_writes_a_png_only(small: Path, tmp_path: Path) -> None:
    result = command("inspect", small, "--out", tmp_path / "map.jpg")
    assert result.exit_code == 2 and "ends in .png" in result.stderr
    result = command("inspect", small, "--out", tmp_path / "none" / "map.png")
    assert result.exit_code == 2 and "does not exist" in result.stderr
