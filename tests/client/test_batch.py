import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from device_client import batch
from device_client import opened as opened_module
from device_client.errors import EncoderError, UseError
from device_client.fake import FakeEncoder
from device_client.opened import Opened
from device_client.picture import Picture
from device_client.session import Sampling, Session
from shared.rpc.errors import CorruptPacketError, UnavailableError
from tests.client.conftest import Begin, FakeServer


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def run(session: Session, lines: list[batch.Line], out: Path) -> tuple[list[bool], list[str]]:
    said: list[str] = []
    stream = batch.run(session, lines, out, sampling=Sampling(), timeout_s=20, complain=said.append)
    return [answered async for answered in stream], said


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
    answered, said = await run(begin(), batch.read_lines(questions), out)
    assert answered == [True, False, False, False, False, True, False, False]
    assert [line.split(":")[0] for line in said] == ["line 2", "line 3", "line 5", "line 6", "line 8", "line 9"]
    found = read(out)
    assert found[0]["id"] == 7 and found[0]["answer"] == "yes to one" and found[0]["image"] == "small.png"
    assert [line["bytes_picture"] for line in found if "answer" in line] == [100, 0]
    assert (found[5]["views"], found[5]["features"]) == (2, 72)
    assert {"bytes_up", "timings", "features", "views"} <= found[0].keys()
    assert "not today" in found[6]["error"] and "missing.png" in found[2]["error"]
    assert server.sessions == 1


async def test_resume_goes_on_behind_the_last_whole_line(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path
) -> None:
    questions = write(tmp_path / "q.jsonl", *({"image": "small.png", "question": f"number {n}"} for n in range(4)))
    lines, out = batch.read_lines(questions), tmp_path / "out.jsonl"
    await run(begin(), lines[:2], out)
    with out.open("a") as file:
        file.write('{"image": "small.png", "quest')  # where the process ended
    with pytest.raises(UseError, match="exists; go on where it ends with --resume"):
        batch.prepare_out(out, lines, resume=False)
    done, _ = batch.prepare_out(out, lines, resume=True)
    assert done == 2
    encoder = FakeEncoder()
    await run(begin(encoder), lines[done:], out)
    assert [line["answer"] for line in read(out)] == [f"yes to number {n}" for n in range(4)]
    assert batch.prepare_out(out, lines, resume=True) == (4, 0)


def test_resume_refuses_the_answers_to_other_questions(tmp_path: Path) -> None:
    lines = batch.read_lines(write(tmp_path / "q.jsonl", {"image": "a.png", "question": "one"}))
    out = write(tmp_path / "out.jsonl", {"image": "a.png", "question": "another", "answer": "yes"})
    with pytest.raises(UseError, match="line 1 differs"):
        batch.prepare_out(out, lines, resume=True)
    write(out, *[{"image": "a.png", "question": "one", "answer": "yes"}] * 2)
    with pytest.raises(UseError, match="2 lines, the questions only 1"):
        batch.prepare_out(out, lines, resume=True)


def test_no_questions(tmp_path: Path) -> None:
    with pytest.raises(UseError, match="has no lines"):
        batch.read_lines(write(tmp_path / "empty.jsonl", ""))
    with pytest.raises(UseError, match=r"none.jsonl: no such file or directory; give a UTF-8 file"):
        batch.read_lines(tmp_path / "none.jsonl")


async def test_a_line_that_is_no_utf_8_fails_alone(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path
) -> None:
    questions = write(tmp_path / "q.jsonl", *[{"image": "small.png", "question": one} for one in ("one", "XX")])
    questions.write_bytes(questions.read_bytes().replace(b"XX", b"\xff"))
    out = tmp_path / "out.jsonl"
    answered, said = await run(begin(), batch.read_lines(questions), out)
    assert answered == [True, False] and said[0].startswith("line 2: the question is no UTF-8 text at character 1")
    with pytest.raises(UseError, match=r"the folder of --out .* does not exist"):
        batch.prepare_out(tmp_path / "nowhere" / "out.jsonl", [], resume=False)


async def test_a_picture_that_cannot_be_encoded_does_not_stop_the_others(
    server: FakeServer, begin: Begin, small: Path, wide: Path, tmp_path: Path
) -> None:
    def burn(index: int) -> None:
        if index == 1:
            raise RuntimeError("out of memory")

    questions = ({"image": name, "question": "well?"} for name in ("wide.png", "small.png"))
    lines = batch.read_lines(write(tmp_path / "q.jsonl", *questions))
    answered, said = await run(begin(FakeEncoder(before_view=burn)), lines, tmp_path / "out.jsonl")
    assert answered == [False, True] and "could not be encoded (out of memory)" in said[0]


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
    opened = Opened(session)
    (first,) = opened.take([small])
    assert first.image is not None
    (second,) = opened.take([wide])
    assert list(opened._pictures.values()) == [second], "the pixels of the first were still there"
    for index in range(second.n_views):
        await session.encoder.view(second, index)
    opened.take([small])
    assert next(iter(opened._pictures)) == second.picture_id and len(opened._pictures) == 2 and second.image is None


async def test_a_file_that_is_replaced_is_opened_again(server: FakeServer, begin: Begin, tmp_path: Path) -> None:
    latest, grey = tmp_path / "latest.bmp", tmp_path / "grey.bmp"
    questions = ({"image": "latest.bmp", "question": str(number)} for number in range(6))
    lines = batch.read_lines(write(tmp_path / "q.jsonl", *questions))
    out = tmp_path / "out.jsonl"
    encoder = FakeEncoder()
    Image.new("RGB", (60, 40), "red").save(latest)
    stream = batch.run(begin(encoder), lines, out, sampling=Sampling(), timeout_s=20, complain=pytest.fail)
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
    ids = [picture.picture_id for picture in server.said("picture")]
    assert len(ids) == len(set(ids)) == 3, "red, blue and grey"
    assert [line["bytes_picture"] > 0 for line in read(out)] == [True, False, True, True, False]


async def test_a_file_that_stays_is_not_opened_again(
    begin: Begin, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_module, "SETTLED", 0)
    session = begin()
    opened, times = Opened(session), 0
    really = session.open

    def counted(path: Path) -> Picture:
        nonlocal times
        times += 1
        return really(path)

    monkeypatch.setattr(session, "open", counted)
    (first,) = opened.take([small])
    assert opened.take([small]) == [first] == opened.take([small]) and times == 1
    other = tmp_path / "copy.png"
    other.write_bytes(small.read_bytes())
    assert opened.take([small, other, small]) == [first] * 3 and times == 2, "known by its content"


async def test_a_lone_surrogate_is_that_lines_error(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path
) -> None:
    questions = ({"image": "small.png", "question": "good", "id": "\ud800"}, {"image": "\ud800.png", "question": "x"})
    broken = {"image": "small.png", "question": "\ud800"}
    lines = batch.read_lines(write(tmp_path / "q.jsonl", *questions, broken))
    out = tmp_path / "out.jsonl"
    answered, _ = await run(begin(), lines, out)
    assert answered == [True, False, False]
    assert read(out)[0]["id"] == "\ud800" and batch.prepare_out(out, lines, resume=True) == (3, 2)


async def test_fields_named_like_results_are_kept(
    server: FakeServer, begin: Begin, small: Path, tmp_path: Path
) -> None:
    line = {"image": "small.png", "question": "one", "answer": "label", "answer_given": "old", "error": "none"}
    lines, out = batch.read_lines(write(tmp_path / "q.jsonl", line)), tmp_path / "out.jsonl"
    assert (await run(begin(), lines, out))[0] == [True]
    (found,) = read(out)
    assert found["answer"] == "yes to one" and "error" not in found
    assert (found["answer_given"], found["answer_given_given"], found["error_given"]) == ("old", "label", "none")
    assert batch.prepare_out(out, lines, resume=True) == (1, 0)


async def test_a_lost_server_ends_the_batch(server: FakeServer, begin: Begin, small: Path, tmp_path: Path) -> None:
    async def sleep(_: float) -> None:
        server.refusal = UnavailableError("gone for good", reason="STOPPING")

    server.lose = [1]
    lines = batch.read_lines(write(tmp_path / "q.jsonl", {"image": "small.png", "question": "there?"}))
    with pytest.raises(UnavailableError, match="gone for good"):
        await run(begin(sleep=sleep), lines, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "", "the line is left for --resume"
