"""What lmms-eval's and VLMEvalKit's own functions make of the made-up rows: prompts, verdicts and scores.

    python -m tests.lab.bench.oracles        # writes oracles.json, in an environment with both packages

Both are needed here only, not by the project: `pip install --no-deps lmms-eval==0.7.3 ms-vlmeval==0.0.20` (VLMEvalKit
as ModelScope publishes it) and what they import. Promises their own code for every recorded value; nothing of it is
copied. `test_oracles.py` compares.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import string
import tempfile
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from tests.lab.bench.answers import answers, composed
from tests.lab.bench.made_up import SETS, SPLITS, Record, rows, write

FILE = Path(__file__).with_name("oracles.json")
COUNT = 12  # answers to a question
COMPOSED = 1500  # answers of random pieces, for functions alone
TASKS = {
    "RealWorldQA": ("realworldqa", "realworldqa.yaml"), "MME": ("mme", "mme.yaml"), "AI2D": ("ai2d", "ai2d.yaml"),
    "MMBench": ("mmbench", "_default_template_mmbench_en_yaml"), "MMStar": ("mmstar", "mmstar.yaml"),
    "ScienceQA": ("scienceqa", "scienceqa_img.yaml"), "MMMU": ("mmmu", "mmmu_val.yaml"),
}  # fmt: skip


def asked_about(name: str, record: Record) -> tuple[list[str], str]:
    """Return the options of a row and an answer that is right."""
    if isinstance(given := record.get("options"), str):
        given = json.loads(given.replace("'", '"'))
    options = list(given or record.get("choices") or [record[c] for c in "ABCDE" if record.get(c) not in (None, "nan")])
    if name == "RealWorldQA" and not options:
        options = re.findall(r"^[A-Z]\. (.*)$", record["question"], re.MULTILINE)
    if name == "MMStar" and not options:
        options = re.findall(r"[A-D]: ([^,]+)", record["question"])
    right = record["answer"]
    return options, "ABCDEFGH"[int(right)] if str(right).isdecimal() and options else str(right)


def given_answers(name: str, records: Sequence[Record]) -> list[list[str]]:
    """Return the answers to each row."""
    return [answers(number, *asked_about(name, record), COUNT) for number, record in enumerate(records)]


# lmms-eval


def settings(name: str) -> tuple[dict[str, Any], int]:
    """Return the prompt's settings of a task, and the most tokens that it asks for."""
    import yaml

    folder = Path(import_module("lmms_eval.tasks").__file__ or "").parent / TASKS[name][0]
    texts = [TASKS[name][1], *(["_default_template_yaml"] if name in ("MMStar", "MMMU") else [])]
    found: dict[str, Any] = {}
    for text in reversed(texts):
        lines = [line for line in (folder / text).read_text().splitlines() if "!function" not in line]
        found |= yaml.safe_load("\n".join(lines))
    tokens = (found.get("generation_kwargs") or {}).get("max_new_tokens", 1024)
    return found["lmms_eval_specific_kwargs"]["default"], tokens


def with_numbers(record: Record) -> Record:
    """Return a row whose pictures are images that have their number, from 0, as colour."""
    made = dict(record)
    for column, value in record.items():
        if column.startswith("image") and column != "image_path" and value is not None:
            number = int(column.partition("_")[2] or 1) - 1
            made[column] = Image.new("RGB", (8, 8), (number, 0, 0))
    return made


def lmms_prompt(name: str, module: Any, record: Record, chosen: dict[str, Any]) -> list[Any]:
    prefix = {"ScienceQA": "sqa"}.get(name, TASKS[name][0])
    if name == "MMMU":
        [sent] = module.mmmu_doc_to_messages(record, chosen)
        return [p["text"] if p["type"] == "text" else p["url"].getpixel((0, 0))[0] for p in sent["content"]]
    shown = getattr(module, f"{prefix}_doc_to_visual")(record)
    text = getattr(module, f"{prefix}_doc_to_text")(record, chosen)
    return [*range(len(shown)), text]


def lmms(name: str) -> dict[str, Any]:
    module = import_module(f"lmms_eval.tasks.{TASKS[name][0]}.{'en_utils' if name == 'MMBench' else 'utils'}")
    records = [with_numbers(record) for record in rows(name, "parquet")]
    chosen, tokens = settings(name)
    given = given_answers(name, records)
    judge = globals()[f"_lmms_{name.lower()}"]
    right = [[judge(module, record, text) for text in texts] for record, texts in zip(records, given, strict=True)]
    whole = globals().get(f"_lmms_{name.lower()}_score")
    scores = []
    for at in range(COUNT):
        column = [texts[at].strip() for texts in given]
        score = whole(module, records, column) if whole else {"accuracy": sum(one[at] for one in right) / len(right)}
        scores.append(score)
    prompts = [lmms_prompt(name, module, record, chosen) for record in records]
    return {"max_tokens": tokens, "prompts": prompts, "answers": given, "right": right, "scores": scores}


def _lmms_realworldqa(module: Any, record: Record, text: str) -> bool:
    return bool(module.realworldqa_process_results(record, [text.strip()])["exact_match"])


def _lmms_mme(module: Any, record: Record, text: str) -> bool:
    [found] = module.mme_process_results(record, [text.strip()]).values()
    return bool(found["score"])


def _lmms_mme_score(module: Any, records: Sequence[Record], texts: Sequence[str]) -> dict[str, float]:
    kinds: dict[str, list[Any]] = {"mme_perception_score": [], "mme_cognition_score": []}
    for record, text in zip(records, texts, strict=True):
        for kind, found in module.mme_process_results(record, [text]).items():
            kinds[kind].append(found)
    return {kind[4:-6]: module.mme_aggregate_results(found) for kind, found in kinds.items()}


def _lmms_ai2d(module: Any, record: Record, text: str) -> bool:
    from lmms_eval.api.metrics import exact_match_hf_evaluate

    chosen = module.MultiChoiceRegexFilter(
        group_select=0, ignore_case=True, ignore_punctuation=True, regex_pattern="([A-Z])\\."
    )
    [filtered] = chosen.apply([[text]], [record])
    target = module.ai2d_doc_to_target(record, "mcq")
    found = exact_match_hf_evaluate([filtered.strip()], [target], ignore_case=True, ignore_punctuation=True)
    return bool(found["exact_match"])


def _lmms_mmbench(module: Any, record: Record, text: str) -> bool:
    import pandas

    result = module.mmbench_process_results(record, [text.strip()])["gpt_eval_score"]
    frame = pandas.DataFrame([result])
    return bool(module.mmbench_evaluator.eval_sub_data(frame, {record["index"]: record["answer"]}, static_only=True))


def _lmms_mmbench_score(module: Any, records: Sequence[Record], texts: Sequence[str]) -> dict[str, float]:
    results = [
        module.mmbench_process_results(record, [text])["gpt_eval_score"]
        for record, text in zip(records, texts, strict=True)
    ]
    overall, _, _ = module.mmbench_evaluator.eval_result(results, eval_method="static")
    return {"accuracy": float(overall)}


def _lmms_mmstar(module: Any, record: Record, text: str) -> bool:
    return bool(module.mmstar_process_results(record, [text.strip()])["average"]["score"])


def _lmms_mmstar_score(module: Any, records: Sequence[Record], texts: Sequence[str]) -> dict[str, float]:
    found = [module.mmstar_process_results(one, [text])["average"] for one, text in zip(records, texts, strict=True)]
    return {"average": module.mmstar_aggregate_results(found)}


def _lmms_scienceqa(module: Any, record: Record, text: str) -> bool:
    return bool(module.sqa_process_results(record, [text.strip()])["exact_match"])


def _lmms_mmmu(module: Any, record: Record, text: str) -> bool:
    return bool(_lmms_mmmu_score(module, [record], [text.strip()])["accuracy"])


def _lmms_mmmu_score(module: Any, records: Sequence[Record], texts: Sequence[str]) -> dict[str, float]:
    found = []
    for record, text in zip(records, texts, strict=True):
        random.seed(f"MMMU {record['id']}")  # as the project seeds its own draws
        found.append(module.mmmu_process_results(record, [text])["mmmu_acc"])
    return {"accuracy": module.mmmu_aggregate_results(found)}


# VLMEvalKit


def vlmevalkit(name: str, folder: Path) -> dict[str, Any]:
    import numpy
    from vlmeval.dataset.image_mcq import ImageMCQDataset, MMMUDataset
    from vlmeval.dataset.image_yorn import ImageYORNDataset
    from vlmeval.smp import load

    records = rows(name, "tsv")
    path = write(folder, name, "tsv", records)
    kind = {"MME": ImageYORNDataset, "MMMU": MMMUDataset}.get(name, ImageMCQDataset)

    class Local(kind):  # type: ignore[misc, valid-type]
        def load_data(self, dataset: str) -> Any:
            return load(str(path))

        def dump_image(self, line: Any) -> list[str]:
            shown = line["image"]
            return [str(at) for at in range(len(shown) if isinstance(shown, list) else 1)]

    dataset = Local({"MMBench": "MMBench_DEV_EN", "MMMU": "MMMU_DEV_VAL", "AI2D": "AI2D_TEST"}.get(name, name))
    prompts = [
        [int(part["value"]) if part["type"] == "image" else part["value"] for part in dataset.build_prompt(at)]
        for at in range(len(dataset))
    ]
    given = given_answers(name, records)
    right: list[list[bool]] = [[] for _ in records]
    scores = []
    for at in range(COUNT):
        predicted = dataset.data.copy()
        predicted["prediction"] = [texts[at] for texts in given]
        hits, score = _vlm_mme(dataset, predicted, folder) if name == "MME" else _vlm_choice(dataset, predicted, folder)
        scores.append(score)
        for one, hit in zip(right, hits, strict=True):
            one.append(bool(hit))
    assert all(isinstance(one, (int, numpy.integer)) for one in dataset.data["index"])
    return {"prompts": prompts, "answers": given, "right": right, "scores": scores}


def _vlm_choice(dataset: Any, predicted: Any, folder: Path) -> tuple[list[int], dict[str, float]]:
    from vlmeval.dataset.utils.multiple_choice import mcq_circular_eval, mcq_vanilla_eval, report_acc

    data = predicted.drop(columns=["image"])
    data["prediction"] = [str(one) for one in data["prediction"]]
    for column in list(data):
        data[column.lower() if column not in list(string.ascii_uppercase) else column] = data.pop(column)
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        hit = mcq_vanilla_eval(None, data.copy(), dataset.data, 1, f"{inner}/one.pkl", dataset.dataset_name)
        whole = hit
        if "MMBench" in dataset.dataset_name:
            whole = mcq_circular_eval(None, data.copy(), dataset.data, 1, f"{inner}/all.pkl", dataset.dataset_name)
    return list(hit["hit"]), {"accuracy": float(report_acc(whole)["Overall"][0])}


def _vlm_mme(dataset: Any, predicted: Any, folder: Path) -> tuple[list[bool], dict[str, float]]:
    from vlmeval.smp import get_intermediate_file_path, load

    with tempfile.TemporaryDirectory(dir=folder) as inner:
        file = f"{inner}/answers.tsv"
        predicted.drop(columns=["image"]).to_csv(file, sep="\t", index=False)
        score = dataset.evaluate(file)
        hits = list(load(get_intermediate_file_path(file, "_auxmatch"))["score"])
    return hits, {"perception": float(score["perception"][0]), "cognition": float(score["reasoning"][0])}


def functions() -> list[dict[str, Any]]:
    """Return what their functions find in answers of random pieces."""
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks._task_utils.mmmu_mcq_utils import get_multi_choice_info, parse_mmmu_multi_choice_response
    from lmms_eval.tasks.ai2d.utils import MultiChoiceRegexFilter
    from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator
    from lmms_eval.tasks.mme.utils import parse_pred_ans
    from lmms_eval.tasks.mmmu.utils import parse_open_response
    from lmms_eval.tasks.scienceqa.utils import sqa_process_results
    from vlmeval.dataset.utils.yorn import YOrN_Extraction
    from vlmeval.utils.matching_util import can_infer

    pattern = MultiChoiceRegexFilter(
        group_select=0, ignore_case=True, ignore_punctuation=True, regex_pattern="([A-Z])\\."
    )
    found = []
    for number in range(COMPOSED):
        text, options = composed(number)
        texts, letters = get_multi_choice_info(options)
        four = {letter: one for letter, one in texts.items() if letter in "ABCD"}
        second = {"choices": list(options), "answer": 1}
        random.seed(f"composed {number}")
        found.append(
            {
                "text": text,
                "letter": extract_mcq_answer(text.strip(), ["A", "B", "C", "D"]),
                "mmmu": parse_mmmu_multi_choice_response(text.strip(), letters, texts),
                "open": sorted(map(str, parse_open_response(text.strip()))),
                "mme": parse_pred_ans(text.strip()),
                "mmbench": mmbench_evaluator.can_infer(text.strip(), dict(four))
                or extract_mcq_answer(text.strip(), choices=sorted(four)),
                "ai2d": pattern.apply([[text]], [{}])[0].strip(),
                "scienceqa": sqa_process_results(second, [text.strip()])["exact_match"],
                "choice": can_infer(text, dict(texts)) or None,
                "words": YOrN_Extraction(text),
            }
        )
    return found


def folder_as_datasets_reads_it(folder: Path) -> dict[str, list[str]]:
    """Return the columns that `datasets`, with which lmms-eval reads, finds in the made-up folders."""
    import datasets

    found = {}
    for name in SETS:
        data = write(folder, name, "parquet")
        read = datasets.load_dataset(
            "parquet", data_files={SPLITS[name]: str(data / "*.parquet")}, cache_dir=str(folder)
        )
        split = read[SPLITS[name]]
        assert len(split) == len(rows(name, "parquet"))
        assert isinstance(split[0]["image_1" if name == "MMMU" else "image"], Image.Image)
        found[name] = list(split.column_names)
    return found


def main() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "PRED_FORMAT": "tsv"}  # the latter: of VLMEvalKit's own files
    names = ("lmms_eval", "ms-vlmeval", "datasets", "pandas", "numpy")
    found: dict[str, Any] = {"versions": {"python": platform.python_version()} | {one: version(one) for one in names}}
    with tempfile.TemporaryDirectory() as inner:
        folder = Path(inner)
        found["columns"] = folder_as_datasets_reads_it(folder)
        found["functions"] = functions()
        for name in SETS:
            found[name] = {"lmms-eval": lmms(name), "vlmevalkit": vlmevalkit(name, folder)}
    text = json.dumps(found, ensure_ascii=True, separators=(",", ":"))
    FILE.write_text(re.sub(r'("(?:prompts|answers|right|scores|lmms-eval|vlmevalkit|text)")', r"\n\1", text) + "\n")
    counts = {name: {rules: sum(map(len, one["answers"])) for rules, one in found[name].items()} for name in SETS}
    print(counts)


if __name__ == "__main__":
    main()
