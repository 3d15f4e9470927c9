"""lmms-eval itself and `tofc-lab bench`, asked through one endpoint about the same made-up files: answer by answer.

    python -m benchmarks.lmms_eval.compare LMMS_PYTHON [SET …]

LMMS_PYTHON: the Python of an environment with lmms-eval. Promises lmms-eval's own tasks, with other data files only.
nano answers, through `device-client serve` and an edge server on this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.e2e.conftest import ServerThread
from tests.endpoint.conftest import EndpointThread
from tests.lab.bench.made_up import SETS, SPLITS, write
from tofc_lab.bench.report import PACKETS
from tofc_lab.bench.run import Job, run

TASKS = {
    "RealWorldQA": "realworldqa/realworldqa.yaml", "MME": "mme/mme.yaml", "AI2D": "ai2d/ai2d.yaml",
    "MMBench": "mmbench/mmbench_en_dev_static.yaml", "MMStar": "mmstar/mmstar.yaml",
    "ScienceQA": "scienceqa/scienceqa_img.yaml", "MMMU": "mmmu/mmmu_val.yaml",
}  # fmt: skip


def write_task(folder: Path, tasks: Path, name: str, data: Path) -> str:
    """Write lmms-eval's task of a set with other files; return its name."""
    task = f"made_up_{name.lower()}"
    lines = [
        f"include: {tasks / TASKS[name]}", f"task: {task}", "dataset_path: parquet", "dataset_name: null",
        "dataset_kwargs:", "  data_files:", f"    {SPLITS[name]}: {data}/*.parquet", "tag: []",
    ]  # fmt: skip
    (folder / f"{task}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return task


def asked_by_lmms_eval(python: str, folder: Path, tasks: list[str], url: str) -> dict[str, Any]:
    """Run lmms-eval; return its samples and results by task."""
    command = [
        python, "-m", "lmms_eval", "--model", "openai", "--model_args", "model_version=nano,timeout=600", "--tasks",
        ",".join(tasks), "--include_path", str(folder / "tasks"), "--batch_size", "1", "--log_samples",
        "--output_path", str(folder / "out"),
    ]  # fmt: skip
    more = {"OPENAI_API_BASE": url, "OPENAI_API_KEY": "unused", "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True, check=False)
    results = next((folder / "out").rglob("20*_results.json"), None)
    if results is None:  # its exit code is 0 all the same; tasks write files of other names
        raise SystemExit(f"lmms-eval gave no results:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = {"results": json.loads(results.read_text(encoding="utf-8"))["results"]}
    for task in tasks:
        (samples,) = (folder / "out").rglob(f"*_samples_{task}.jsonl")
        found[task] = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    return found


def _text(response: Any) -> str:
    """Return an answer, which lmms-eval writes within lists where its filter changed it."""
    while isinstance(response, list):
        response = response[0]
    return str(response)


def main() -> None:
    """Print a line for each set: equal answers, and both scores."""
    python, *names = sys.argv[1:]
    where = "import lmms_eval.tasks as tasks; print(tasks.__path__[0])"
    tasks = Path(subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.split()[-1])
    server = ServerThread()
    endpoint = EndpointThread(server.address)
    try:
        with tempfile.TemporaryDirectory() as inner:
            folder = Path(inner)
            (folder / "tasks").mkdir()
            chosen = {name: write(folder / "data", name, "parquet") for name in names or SETS}
            made = {name: write_task(folder / "tasks", tasks, name, data) for name, data in chosen.items()}
            theirs = asked_by_lmms_eval(python, folder, list(made.values()), endpoint.url)
            for name, task in made.items():
                ours = run(Job(name=name, data=chosen[name], endpoint=endpoint.url))
                answers = [one["ways"][PACKETS]["answer"] for one in ours["answers"]]
                samples = sorted(theirs[task], key=lambda sample: int(sample["doc_id"]))
                given = [_text(sample.get("resps", sample["filtered_resps"])) for sample in samples]
                equal = sum(one == other for one, other in zip(answers, given, strict=True))
                scores = {key: value for key, value in theirs["results"][task].items() if isinstance(value, float)}
                print(f"{name}: {equal} of {len(answers)} answers equal; {ours['scores']}; lmms-eval {scores}")
    finally:
        endpoint.stop()
        server.stop()


if __name__ == "__main__":
    main()
