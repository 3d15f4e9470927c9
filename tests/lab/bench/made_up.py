"""Made-up files of the seven sets, in exactly the columns of the real ones, with pictures of nano's world.

The questions are those of `tests/e2e/pictures`, which nano answers. `oracles.py` asks the two programs' own functions
about the same rows.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).resolve().parents[2] / "e2e" / "pictures"
SETS = ("RealWorldQA", "MME", "AI2D", "MMBench", "MMStar", "ScienceQA", "MMMU")
SPLITS = dict(zip(SETS, ("test", "test", "test", "dev", "val", "test", "validation"), strict=True))
FORMS = ("parquet", "tsv")
WORDS = ("hat", "panda", "rocket", "yes", "no", "none", "1", "2", "42", "tree", "gift", "octopus")
DIRECTLY = "Please answer directly with only the letter of the correct option and nothing else."

Record = dict[str, Any]


def asked() -> list[dict[str, str]]:
    lines: list[dict[str, str]] = json.loads((PICTURES / "questions.json").read_text(encoding="utf-8"))
    return lines


def picture(name: str) -> bytes:
    return (PICTURES / name).read_bytes()


def options(answer: str, number: int, count: int = 4) -> tuple[list[str], int]:
    """Return different options, one of which is the answer, and its index, which changes with `number`."""
    others = [word for word in WORDS if word != answer]
    start = 5 * number % len(others)
    chosen = (others[start:] + others[:start])[: count - 1]
    at = number % count
    return [*chosen[:at], answer, *chosen[at:]], at


def rows(name: str, form: str, most: int = 24) -> list[Record]:
    """Return the rows of a set; pictures are bytes, lists of bytes, or None."""
    return globals()[f"_{name.lower()}"](form == "parquet", asked()[: 72 if name == "MME" else most])


def _lettered(texts: Sequence[str], letters: str = "ABCD") -> Record:
    return {letter: texts[at] if at < len(texts) else None for at, letter in enumerate(letters)}


def _realworldqa(parquet: bool, lines: list[dict[str, str]]) -> list[Record]:
    found: list[Record] = []
    for number, line in enumerate(lines):
        texts, at = options(line["answer"], number, 3)
        open_question = number % 3 == 0
        record: Record = {"image": picture(line["image"]), "question": line["question"]}
        if parquet:
            if not open_question:
                listed = "\n".join(f"{letter}. {text}" for letter, text in zip("ABC", texts, strict=True))
                record["question"] = f"{line['question']}\n\n{listed}\n{DIRECTLY}"
            answer = line["answer"].capitalize() if open_question else "ABC"[at]
            record |= {"answer": answer, "image_path": f"{number}.webp"}
        else:
            record |= {"index": number, "answer": "ABC"[at], **_lettered(texts), "category": f"kind {number % 2}"}
        found.append(record)
    return found


def _mme(parquet: bool, lines: list[dict[str, str]]) -> list[Record]:
    """Pairs of a question that is answered yes and one that is answered no about the same picture."""
    found: list[Record] = []
    names = ("existence", "count", "color", "OCR", "code_reasoning", "numerical_calculation")
    for image in dict.fromkeys(line["image"] for line in lines):
        here = [line for line in lines if line["image"] == image and line["answer"] in ("yes", "no")]
        kinds = {answer: [line for line in here if line["answer"] == answer] for answer in ("yes", "no")}
        for number, both in enumerate(zip(kinds["yes"], kinds["no"], strict=False)):
            category = names[(len(found) // 2) % len(names)]
            path = f"{category}/{image.removesuffix('.jpg')}-{number}.jpg"
            for line in both:
                record: Record = {
                    "image": picture(image),
                    "question": f"{line['question']} Please answer yes or no.",
                    "answer": line["answer"].capitalize(),
                    "category": category,
                }
                found.append(record | ({"question_id": path} if parquet else {"index": len(found), "image_path": path}))
    return found


def _ai2d(parquet: bool, lines: list[dict[str, str]]) -> list[Record]:
    found: list[Record] = []
    for number, line in enumerate(lines):
        texts, at = options(line["answer"], number)
        record: Record = {"image": picture(line["image"]), "question": line["question"]}
        if parquet:
            record |= {"options": texts, "answer": str(at)}
        else:
            record |= {"index": number, **_lettered(texts), "answer": "ABCD"[at], "image_path": f"{number}.png"}
            if number % 3 == 1 and at != 3:
                record["D"] = "None"  # which pandas takes for missing
        found.append(record)
    return found


def _mmbench(parquet: bool, lines: list[dict[str, str]]) -> list[Record]:
    """Circles: every order of a question's options by rotation, with the same index modulo a million."""
    found: list[Record] = []
    coarse, nothing = ("L2-category", "nan") if parquet else ("l2-category", None)
    for number, line in enumerate(lines[:14]):
        count = 2 + number % 3
        texts, at = options(line["answer"], number, count)
        for turn in range(count):
            turned = texts[turn:] + texts[:turn]
            letters = {letter: turned[i] if i < count else nothing for i, letter in enumerate("ABCD")}
            found.append(
                {
                    "index": 241 + number + turn * 1_000_000,
                    "question": line["question"],
                    "hint": "Look closely." if number % 4 == 1 else nothing,
                    "answer": "ABCD"[(at - turn) % count],
                    **letters,
                    "category": line["family"],
                    "image": picture(line["image"]),
                    "source": "made up",
                    coarse: f"ability {number % 2}",
                    "comment": nothing,
                    "split": "dev",
                }
            )
    return found


def _mmstar(parquet: bool, lines: list[dict[str, str]]) -> list[Record]:
    found: list[Record] = []
    for number, line in enumerate(lines):
        texts, at = options(line["answer"], number)
        category = ("coarse perception", "math")[number % 2]
        fine = f"{category} {number % 5}"
        listed = ", ".join(f"{letter}: {text}" for letter, text in zip("ABCD", texts, strict=True))
        question = f"{line['question']}\nOptions: {listed}" if parquet else line["question"]
        record: Record = {
            "index": number,
            "question": question,
            "image": picture(line["image"]),
            "answer": "ABCD"[at],
            "category": category,
        }
        if parquet:
            meta = {"source": "made up", "split": "val", "image_path": f"{number}.jpg"}
            record |= {"l2_category": fine, "meta_info": meta}
        else:
            record |= {"l2-category": fine, **_lettered(texts)}
        found.append(record)
    return found


def _scienceqa(parquet: bool, lines: list[dict[str, str]]) -> list[Record]:
    found: list[Record] = []
    for number, line in enumerate(lines):
        count = 2 + number % 3
        texts, at = options(line["answer"], number, count)
        hint = "The picture was drawn." if number % 2 else ""
        record: Record = {"image": picture(line["image"]), "question": line["question"], "hint": hint}
        if parquet:
            record |= {"choices": texts, "answer": at, "task": "closed choice", "grade": "grade2"}
            record |= {"subject": ("natural science", "social science")[number % 2], "topic": "", "category": ""}
            record |= {"skill": "", "lecture": "", "solution": ""}
        else:
            record |= {"index": number, **_lettered(texts, "ABCDE"), "answer": "ABCD"[at], "split": "test"}
            record |= {"category": f"kind {number % 2}"}
        found.append(record)
    return found


def _mmmu(parquet: bool, lines: list[dict[str, str]]) -> list[Record]:
    """Every third question is open; every fourth shows two pictures within its text."""
    found: list[Record] = []
    subjects = (("Art", "Art and Design"), ("Math", "Science"))
    for number, line in enumerate(lines):
        texts, at = options(line["answer"], number)
        open_question, two = number % 3 == 0, number % 4 == 2
        subject, domain = subjects[number % 2]
        images = [picture(line["image"])] * 2 if two else [picture(line["image"])]
        question = f"<image 1> and <image 2>: {line['question']}" if two else f"<image 1> {line['question']}"
        question = question if number % 5 else f"{line['question']} <image 1>"
        if number % 5 == 0:
            images = images[:1]
        answer = line["answer"] if open_question else "ABCD"[at]
        record: Record = {"id": f"validation_{subject}_{number + 1}", "question": question, "answer": answer}
        if parquet:
            record |= {
                "options": repr([] if open_question else texts),
                "explanation": "",
                "img_type": "['Photographs']",
            }
            record |= {f"image_{i + 1}": images[i] if i < len(images) else None for i in range(7)}
            record |= {
                "topic_difficulty": "Easy",
                "subfield": "",
                "question_type": "open" if open_question else "multiple-choice",
            }
        else:
            record |= {
                "index": number,
                "image": images,
                **_lettered([] if open_question else texts),
                "split": "validation",
            }
            record |= {"category": subject, "l2-category": domain}
        found.append(record)
    return found


def write_tsv(path: Path, records: Sequence[Record], *, references: bool = True) -> Path:
    """Write VLMEvalKit's file; a picture that an earlier row has is written as that row's index."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    first: dict[bytes, str] = {}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for record in records:
            values = dict(record)
            images = record.get("image")
            if isinstance(images, bytes):
                known = first.setdefault(images, str(record["index"]))
                again = references and known != str(record["index"])
                values["image"] = known if again else base64.b64encode(images).decode()
            elif isinstance(images, list):
                texts = [base64.b64encode(one).decode() for one in images]
                values["image"] = texts[0] if len(texts) == 1 else repr(texts)
            writer.writerow(["" if values.get(name) is None else values[name] for name in columns])
    return path


def write_parquet(folder: Path, records: Sequence[Record], split: str, *, files: int = 2) -> Path:
    """Write the folder that `datasets` reads: files of a split, pictures as bytes and path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    table = _arrow_table(records)
    size = -(-len(records) // files)
    for number in range(files):
        part = table.slice(number * size, size)
        pq.write_table(part, folder / f"{split}-{number:05d}-of-{files:05d}.parquet", row_group_size=5)
    assert isinstance(table, pa.Table)
    return folder


def write_saved(folder: Path, records: Sequence[Record], split: str) -> Path:
    """Write what `DatasetDict.save_to_disk` writes."""
    import pyarrow as pa

    inner = folder / split
    inner.mkdir(parents=True)
    table = _arrow_table(records)
    with (
        pa.OSFile(str(inner / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    (inner / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return folder


def _arrow_table(records: Sequence[Record]) -> Any:
    import pyarrow as pa

    columns: dict[str, Any] = {}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for name in dict.fromkeys(name for record in records for name in record):
        values = [record.get(name) for record in records]
        if name.startswith("image") and name != "image_path":
            shown = [None if one is None else {"bytes": one, "path": None} for one in values]
            columns[name] = pa.array(shown, image)
        elif name == "answer" and isinstance(values[0], int):
            columns[name] = pa.array(values, pa.int8())
        else:
            columns[name] = pa.array(values)
    table = pa.table(columns)
    features = {field.name: _feature(field) for field in table.schema}  # by them `datasets` knows what are pictures
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(field: Any) -> Record:
    from pyarrow import types

    if field.name.startswith("image") and field.name != "image_path":
        return {"_type": "Image"}
    if types.is_struct(field.type):
        return {inner.name: _feature(inner) for inner in field.type}
    if types.is_list(field.type):
        return {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}
    return {"dtype": str(field.type), "_type": "Value"}


def write(folder: Path, name: str, form: str, records: Sequence[Record] | None = None) -> Path:
    """Write a set in one of its forms and return what --data takes."""
    records = rows(name, form) if records is None else records
    folder.mkdir(parents=True, exist_ok=True)
    if form == "parquet":
        return write_parquet(folder / name, records, SPLITS[name])
    return write_tsv(folder / f"{name}.tsv", records)
