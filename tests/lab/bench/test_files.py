"""Both file forms are read alike, and what is wrong in a file is named with its place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.bench.made_up import FORMS, SETS, SPLITS, Record, rows, write, write_parquet, write_saved, write_tsv
from tofc.errors import UsageError
from tofc_lab.bench.pictures import check_pictures
from tofc_lab.bench.question import Verdict
from tofc_lab.bench.run import Job, find_set, fingerprint, limited, run, unique
from tofc_lab.bench.tables import read_table


def hashes(records: list[Record], *columns: str) -> list[list[str]]:
    found = []
    for record in records:
        values = [record.get(column) for column in columns or ("image",)]
        given = values[0] if isinstance(values[0], list) else [value for value in values if value is not None]
        found.append([hashlib.sha256(data).hexdigest()[:32] for data in given])
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SETS)
def test_every_question_has_its_pictures(name: str, form: str, tmp_path: Path) -> None:
    records = rows(name, form)
    chosen = find_set(name)
    questions = chosen.read(read_table(write(tmp_path, name, form, records), chosen.split, None))
    columns = [f"image_{number}" for number in range(1, 8)] if name == "MMMU" and form == "parquet" else []
    assert check_pictures(questions) == hashes(records, *columns)
    assert len({one.id for one in questions}) == len(records)


def test_both_forms_of_a_folder_are_read_alike(tmp_path: Path) -> None:
    chosen, records = find_set("MMMU"), rows("MMMU", "parquet")
    found = []
    for folder in (
        write_parquet(tmp_path / "a", records, "validation"),
        write_saved(tmp_path / "b", records, "validation"),
    ):
        questions = chosen.read(read_table(folder, chosen.split, None))
        found.append(fingerprint(questions, check_pictures(questions)))
    assert found[0] == found[1]


def test_the_split_of_the_set_is_read_unless_another_is_named(tmp_path: Path) -> None:
    records = rows("AI2D", "parquet")
    write_parquet(tmp_path, records[:3], "test", files=1)
    write_parquet(tmp_path, records[3:5], "train", files=1)
    assert [len(read_table(tmp_path, "test", split).rows) for split in (None, "train")] == [3, 2]
    with pytest.raises(UsageError, match="no split 'dev'; it has test, train: choose with --split"):
        read_table(tmp_path, "test", "dev")


def test_rows_of_another_split_in_a_tsv_file_are_left_out(tmp_path: Path) -> None:
    records = rows("MMMU", "tsv")
    for record in records[:5]:
        record["split"] = "dev"
    path = write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", records)
    assert len(read_table(path, "validation", None).rows) == len(records) - 5
    assert len(read_table(path, "validation", "dev").rows) == 5


def damaged(change: Callable[[list[Record]], None], path: Path, name: str = "AI2D") -> Path:
    records = rows(name, "tsv")
    change(records)
    return write_tsv(path / "file.tsv", records, references=False)


def _without(column: str) -> Callable[[list[Record]], None]:
    def change(records: list[Record]) -> None:
        for record in records:
            del record[column]

    return change


def _set(number: int, column: str, value: object) -> Callable[[list[Record]], None]:
    return lambda records: records[number].__setitem__(column, value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("AI2D", _without("answer"), "lacks the column answer; it has image, question, index"),
        ("AI2D", _without("image"), "lacks the column image; it has"),
        ("MMStar", _without("l2-category"), "lacks the column l2-category; it has"),
        ("AI2D", _set(2, "image", "99"), "row 3, column image: '99' must be base64 or the index .* no such index"),
        ("AI2D", _set(0, "image", "0"), "row 1, column image: '0' must be .* the row of that index has none"),
        ("AI2D", _set(1, "image", "Ä" * 80), "row 2, column image: is not base64"),
        ("AI2D", _set(1, "image", "QUJD" * 40), "question 1: its picture cannot be read"),
        ("MME", _set(4, "answer", "perhaps"), "row 5, column answer: must be Yes or No, got 'perhaps'"),
        ("MMBench", _set(1, "index", "x"), "row 2, column index: must be a whole number, got 'x'"),
        ("AI2D", _set(1, "index", "0"), "has the question 0 twice"),
        ("AI2D", _set(3, "question", None), "row 4, column question: is missing"),
    ],
)
def test_what_is_wrong_in_a_tsv_file_is_named(
    name: str, change: Callable[[list[Record]], None], message: str, tmp_path: Path
) -> None:
    path = damaged(change, tmp_path, name)
    chosen = find_set(name)
    with pytest.raises(UsageError, match=message):
        check_pictures(unique(chosen.read(read_table(path, chosen.split, None)), path))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("options", [], "column options: must be a list of 2 to 26 options"),
        ("answer", "7", "column answer: must be the index of an option, 0 to 3, got '7'"),
        ("image", b"no picture", "question 2: its picture cannot be read"),
    ],
)
def test_what_is_wrong_in_a_folder_is_named(column: str, value: object, message: str, tmp_path: Path) -> None:
    records = rows("AI2D", "parquet")
    records[1][column] = value
    chosen = find_set("AI2D")
    with pytest.raises(UsageError, match=message):
        check_pictures(chosen.read(read_table(write(tmp_path, "AI2D", "parquet", records), SPLITS["AI2D"], None)))


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; give --data a folder"):
        read_table(tmp_path / "absent", "test", None)
    (short := tmp_path / "short.tsv").write_text("index\timage\n1\n")
    with pytest.raises(UsageError, match="row 1 has 1 values, but there are 2 columns"):
        read_table(short, "test", None)
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(UsageError, match="is empty"):
        read_table(tmp_path / "empty.tsv", "test", None)
    (tmp_path / "binary.tsv").write_bytes(b"index\timage\n\xff\xfe\t\x00\n")
    with pytest.raises(UsageError, match="not a TSV file in UTF-8"):
        read_table(tmp_path / "binary.tsv", "test", None)


def test_a_folder_without_data_and_a_broken_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no parquet file and no data set of save_to_disk"):
        read_table(tmp_path, "test", None)
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(UsageError, match="cannot be read"):
        read_table(tmp_path, "test", None)


def test_what_belongs_together_must_be_there(tmp_path: Path) -> None:
    records = rows("MME", "tsv")[:5]
    questions = find_set("MME").read(read_table(write_tsv(tmp_path / "MME.tsv", records), "test", None))
    judged = [(question, Verdict(extracted="Yes", right=True), "picture") for question in questions]
    with pytest.raises(UsageError, match="two questions about a picture, the file has 1 about "):
        find_set("MME").rules["lmms-eval"].units(judged)
    assert [question.id for question in limited(questions, 3)] == ["0", "1", "2", "3"]  # a pair is asked whole


def test_a_picture_that_a_text_names_must_be_there(tmp_path: Path) -> None:
    records = rows("MMMU", "tsv")[:2]
    records[1]["question"] = "<image 2> what is this?"
    data = write_tsv(tmp_path / "MMMU.tsv", records)
    with pytest.raises(UsageError, match="question validation_Math_2 names its picture 2, but it has 1"):
        run(Job(name="MMMU", data=data))


def test_an_unknown_set_lists_the_seven() -> None:
    with pytest.raises(UsageError, match="RealWorldQA, MME, AI2D, MMBench, MMStar, ScienceQA, MMMU, got VQAv2"):
        find_set("VQAv2")
    assert find_set("mmbench") is find_set("MMBench")
