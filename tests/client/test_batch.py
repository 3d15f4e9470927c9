from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from device_client import batch, opened_pictures
from device_client.batch_out import open_out
from device_client.fake import FakeEncoder
from device_client.opened_pictures import OpenedPictures
from device_client.picture import Picture
from device_client.sampling import Sampling
from device_client.session import Session
from tests.client.conftest import Begin, FakeServer
from tofc.errors import CorruptPacketError, EncoderError, EncodingError, UnavailableError, UsageError


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def run(session: Session, lines: list[batch.Line], out: Path) -> tuple[list[bool], list[str]]:
    warnings: list[str] = []
    with open_out(out, lines, questions=out.parent / "q.jsonl", resume=True) as answers:
        stream = batch.run(
            session, lines[answers.done :], answers.file, sampling=Sampling(), timeout_s=20, warn=warnings.append
        )
        return [answered async for answered in stream], warnings


def kept(out: Path, lines: list[batch.Line]) -> tuple[int, int]:
    """Return (lines done, how many of them failed)."""
    with open_out(out, lines, questions=out.parent / "q.jsonl", resume=True) as answers:
        return answers.done, answers.failed


async def test_bad_lines_do_not_stop_the_others(server: FakeServer, begin: Begin, small: Path, tmp_path: Path) -> None:
    server.fail = CorruptPacketError("not today")
    (tmp_path / "words.png").write_text("no picture")
    questions = write(
        tmp_path / "q.jsonl",
        {"image": "small.png", "question": "one", "id": 7},
        "{broken",
        {"image": "missing.png", "question": "two"},
        "",
        {"image": "words.png", "question": "three"},
        {"image": "small.png", "question": " "},
        {"images": [str(small), "small.png"], "question": "four"},
        {"image": "small.png", "question": "fail"},
        ["no object"],
    )
    out = tmp_path / "out.jsonl"
    answered, warnings = await run(begin(), batch.read_lines(questions), out)
    assert answered == [True, False, False, False, False, True, False, False]
    assert [line.split(":")[0] for line in warnings] == ["line 2", "line 3", "line 5", "line 6", "line 8", "line 9"]
    found = read(out)
    assert found[0]["id"] == 7 and found[0]["answer"] == "yes to one" and found[0]["image"] == "small.png"
    assert [line["bytes_picture"] for line in found if "answer" in line] == [100, 0]
    assert (found[5]["views"], found[5]["features"]) == (2, 72)
    assert {"bytes_up", "timings", "features", "views"} <= found[0].keys()
    assert "not today" in found[6]["error"] and "missing.png" in found[2]["error"]
    assert server.sessions == 1


async def test_resume_continues_after_the_last_complete_line(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path
) -> None:
    questions = write(tmp_path / "q.jsonl", *({"image": "small.png", "question": f"number {n}"} for n in range(4)))
    lines, out = batch.read_lines(questions), tmp_path / "out.jsonl"
    await run(begin(), lines[:2], out)
    with out.open("a") as file:
        file.write('{"image": "small.png", "quest')  # where the process ended
    encoder = FakeEncoder()
    assert (await run(begin(encoder), lines, out))[0] == [True, True]
    assert [line["answer"] for line in read(out)] == [f"yes to number {n}" for n in range(4)]
    assert kept(out, lines) == (4, 0)


def test_no_questions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no lines"):
        batch.read_lines(write(tmp_path / "empty.jsonl", ""))
    with pytest.raises(UsageError, match=r"none.jsonl: no such file or directory; give a UTF-8 file"):
        batch.read_lines(tmp_path / "none.jsonl")


async def test_a_line_that_is_not_utf_8_fails_alone(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path
) -> None:
    questions = write(tmp_path / "q.jsonl", *[{"image": "small.png", "question": one} for one in ("one", "XX")])
    questions.write_bytes(questions.read_bytes().replace(b"XX", b"\xff"))
    out = tmp_path / "out.jsonl"
    answered, warnings = await run(begin(), batch.read_lines(questions), out)
    assert answered == [True, False] and warnings[0].startswith(
        "line 2: not JSON: not UTF-8 text at character 37; check"
    )


async def test_a_picture_that_cannot_be_encoded_does_not_stop_the_others(
    server: FakeServer, begin: Begin, small: Path, wide: Path, tmp_path: Path
) -> None:
    def burn(index: int) -> None:
        if index == 1:
            raise RuntimeError("out of memory")

    questions = ({"image": name, "question": "well?"} for name in ("wide.png", "small.png"))
    lines = batch.read_lines(write(tmp_path / "q.jsonl", *questions))
    answered, warnings = await run(begin(FakeEncoder(before_view=burn)), lines, tmp_path / "out.jsonl")
    assert answered == [False, True] and "this device has not enough memory for" in warnings[0]


async def test_an_encoder_that_cannot_be_loaded_ends_the_batch(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path
) -> None:
    class Broken(FakeEncoder):
        def load(self) -> None:
            raise EncoderError("needs torch")

    lines = batch.read_lines(write(tmp_path / "q.jsonl", {"image": "small.png", "question": "well?"}))
    with pytest.raises(EncoderError, match="needs torch"):
        await run(begin(Broken()), lines, tmp_path / "out.jsonl")


async def test_pixels_are_kept_of_one_line_only(begin: Begin, small: Path, wide: Path) -> None:
    session = begin()
    opened = OpenedPictures(session)
    (first,) = opened.open([small])
    assert first.image is not None
    (second,) = opened.open([wide])
    assert list(opened._pictures.values()) == [second], "the pixels of the first were still there"
    for index in range(second.n_views):
        await session.encoder.view(second, index)
    opened.open([small])
    assert next(iter(opened._pictures)) == second.picture_id and len(opened._pictures) == 2 and second.image is None


async def test_a_file_that_is_replaced_is_opened_again(server: FakeServer, begin: Begin, tmp_path: Path) -> None:
    latest, grey = tmp_path / "latest.bmp", tmp_path / "grey.bmp"
    questions = ({"image": "latest.bmp", "question": str(number)} for number in range(6))
    lines = batch.read_lines(write(tmp_path / "q.jsonl", *questions))
    out = tmp_path / "out.jsonl"
    encoder = FakeEncoder()
    Image.new("RGB", (60, 40), "red").save(latest)
    file = out.open("wb", buffering=0)
    stream = batch.run(begin(encoder), lines, file, sampling=Sampling(), timeout_s=20, warn=pytest.fail)
    assert await anext(stream) and await anext(stream)
    kept = latest.stat()
    Image.new("RGB", (60, 40), "blue").save(latest)  # in its place, of the same size
    os.utime(latest, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # as copies do that keep times
    assert latest.stat().st_size == kept.st_size and await anext(stream)
    Image.new("RGB", (60, 40), "grey").save(grey)
    grey.rename(latest)  # as careful programs do
    assert await anext(stream)
    latest.write_bytes(latest.read_bytes())  # the same once more
    assert await anext(stream)
    latest.unlink()
    with pytest.raises(pytest.fail.Exception, match=r"line 6: .*latest\.bmp does not exist"):
        await anext(stream)
    file.close()
    ids = [picture.picture_id for picture in server.received("picture")]
    assert len(ids) == len(set(ids)) == 3, "red, blue and grey"
    assert [line["bytes_picture"] > 0 for line in read(out)] == [True, False, True, True, False]


async def test_a_file_that_stays_is_not_opened_again(
    begin: Begin, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_pictures, "SETTLED_NS", 0)
    session = begin()
    opened, times = OpenedPictures(session), 0
    really = session.open

    def counted(path: Path) -> Picture:
        nonlocal times
        times += 1
        return really(path)

    monkeypatch.setattr(session, "open", counted)
    (first,) = opened.open([small])
    assert opened.open([small]) == [first] == opened.open([small]) and times == 1
    other = tmp_path / "copy.png"
    other.write_bytes(small.read_bytes())
    assert opened.open([small, other, small]) == [first] * 3 and times == 2, "known by its content"


async def test_a_lone_surrogate_is_that_lines_error(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path
) -> None:
    questions = ({"image": "small.png", "question": "good", "id": "\ud800"}, {"image": "\ud800.png", "question": "x"})
    broken = {"image": "small.png", "question": "\ud800"}
    lines = batch.read_lines(write(tmp_path / "q.jsonl", *questions, broken))
    out = tmp_path / "out.jsonl"
    answered, _ = await run(begin(), lines, out)
    assert answered == [True, False, False]
    assert read(out)[0]["id"] == "\ud800" and kept(out, lines) == (3, 2)


async def test_fields_named_like_results_are_kept(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path
) -> None:
    line = {"image": "small.png", "question": "one", "answer": "label", "answer_given": "old", "error": "none"}
    lines, out = batch.read_lines(write(tmp_path / "q.jsonl", line)), tmp_path / "out.jsonl"
    assert (await run(begin(), lines, out))[0] == [True]
    (found,) = read(out)
    assert found["answer"] == "yes to one" and "error" not in found
    assert (found["answer_given"], found["answer_given_given"], found["error_given"]) == ("old", "label", "none")
    assert kept(out, lines) == (1, 0)


async def test_a_lost_server_ends_the_batch(server: FakeServer, begin: Begin, small: Path, tmp_path: Path) -> None:
    async def sleep(_: float) -> None:
        server.refusal = UnavailableError("gone for good", reason="STOPPING")

    server.lose = [1]
    lines = batch.read_lines(write(tmp_path / "q.jsonl", {"image": "small.png", "question": "there?"}))
    with pytest.raises(UnavailableError, match="gone for good"):
        await run(begin(sleep=sleep), lines, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists(), "the line is left for --resume"


@pytest.mark.parametrize(
    ("start", "between", "end"),
    [
        ("\ufeff", "\n\ufeff", "\n"),
        ("\ufeff", "\ufeff", ""),  # the first file had no line end at its end
        ("", "\r\n", "\r\n"),
        ("", "\r", "\r"),
        ("\n \n", "\n\r\n\n", ""),
    ],
)
async def test_files_as_other_systems_write_them(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path, start: str, between: str, end: str
) -> None:
    first, second = (json.dumps({"image": "small.png", "question": one}) for one in ("one", "two"))
    text = f"{start}{first}{between}{second}{end}"
    (tmp_path / "q.jsonl").write_bytes(text.encode())
    answered, _ = await run(begin(), batch.read_lines(tmp_path / "q.jsonl"), tmp_path / "out.jsonl")
    assert answered == [True, True]
    assert [line["answer"] for line in read(tmp_path / "out.jsonl")] == ["yes to one", "yes to two"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_reported_once(tmp_path: Path, encoding: str) -> None:
    plain = b'{"image": "a.png", "question": "one"}\n'
    for data in (plain.decode().encode(encoding) * 3, plain + plain.decode().encode(encoding)):
        (tmp_path / "q.jsonl").write_bytes(data)
        with pytest.raises(EncodingError, match=rf"q\.jsonl is {encoding[:6].upper()} text; save it as UTF-8"):
            batch.read_lines(tmp_path / "q.jsonl")


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse, parse_int=str, parse_float=str)


@pytest.mark.parametrize(
    "value",
    [
        "1e400",
        "-1e400",
        "9" * 5000,
        "0.1000000000000000055511151231257827",
        "1.10",
        '"\\ud800"',
        '"caf\\u00e9 é \\u0000"',
        "[" * 300 + "]" * 300,
        '{"a": {"b": [1, {"c": "}"}]}}',
    ],
)
async def test_a_field_is_copied_exactly(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path, value: str
) -> None:
    questions = write(tmp_path / "q.jsonl", f'{{"id": {value} ,"image":"small.png" , "question": "one"}}')
    lines, out = batch.read_lines(questions), tmp_path / "out.jsonl"
    assert (await run(begin(), lines, out))[0] == [True]
    (written,) = out.read_text(encoding="utf-8").splitlines()
    assert written.startswith(f'{{"id": {value}, "image": "small.png", "question": "one", "answer": "yes to one", ')
    assert strict(written)["id"] == strict(value) and kept(out, lines) == (1, 0)


async def test_characters_that_some_programs_take_for_a_line_end_are_escaped(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path
) -> None:
    server.reply_start = odd = "a\u2028b\x85c\x9b\x7fd"
    (tmp_path / "q.jsonl").write_text(f'{{"image": "small.png", "question": "{odd}?"}}', encoding="utf-8")
    out = tmp_path / "out.jsonl"
    assert (await run(begin(), batch.read_lines(tmp_path / "q.jsonl"), out))[0] == [True]
    (written,) = out.read_text(encoding="utf-8").splitlines()
    found = json.loads(written)
    assert found["question"] == f"{odd}?" and found["answer"] == f"{odd} to {odd}?"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"image": "small.png", "question": "one", "id": NaN}', "not JSON: NaN is not a number"),
        ('{"image": "small.png", "question": "one", "id": [-Infinity]}', "not JSON: -Infinity is not a number"),
        ('{"image": "small.png", "question": "one", "id": ' + "[" * 99_999, "nested too deeply"),
        ('{"image": "small.png", "question": "o\0ne"}', "not JSON: Invalid control character at character 38"),
        ("9" * 5000, "not a JSON object"),
        ('{"image": "a\\u0000.png", "question": "one"}', "holds a zero character"),
        ('{"image": "\\ud800.png", "question": "one"}', "is not a file name in utf-8"),
        ('{"image": "' + "a" * 300 + '.png", "question": "one"}', "file name too long"),
    ],
)
async def test_a_line_that_is_not_allowed_fails_alone(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path, line: str, expected: str
) -> None:
    good = {"image": "small.png", "question": "good"}
    lines, out = batch.read_lines(write(tmp_path / "q.jsonl", line, good)), tmp_path / "out.jsonl"
    answered, warnings = await run(begin(), lines, out)
    assert answered == [False, True] and len(warnings) == 1 and expected in warnings[0]
    found = [strict(one) for one in out.read_text(encoding="utf-8").splitlines()]
    assert expected in found[0]["error"] and found[1]["answer"] == "yes to good" and kept(out, lines) == (2, 1)


def test_paths_are_relative_to_the_file_and_a_pipe_s_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    text = '{"image": "a.png", "question": "one"}\n'
    (tmp_path / "below" / "q.jsonl").write_text(text)
    assert batch.read_lines(Path("below/q.jsonl"))[0].images == (Path("below/a.png"),)
    with (tmp_path / "below" / "q.jsonl").open() as file:  # /dev/stdin of `< below/q.jsonl`
        assert batch.read_lines(Path(f"/dev/fd/{file.fileno()}"))[0].images == (Path("a.png"),)
    ends = os.pipe()
    os.write(ends[1], text.encode())
    os.close(ends[1])
    assert batch.read_lines(Path(f"/dev/fd/{ends[0]}"))[0].images == (Path("a.png"),)
    os.close(ends[0])
    os.mkfifo(tmp_path / "below" / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "below" / "pipe").write_text(text))
    writer.start()
    assert batch.read_lines(Path("below/pipe"))[0].images == (Path("a.png"),)
    writer.join()
