"""The model's own answers to all questions, kept on disk picture by picture.

Promises that an interrupted run resumes with the next picture. Leaves choosing the folder to the caller: its name must
change with everything that answers depend on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.distillation.pictures import StoredPicture
from tofc_lab.distillation.source import Answers, merged
from tofc_lab.distillation.teacher import Teacher
from tofc_lab.progress import Progress


def compute(
    folder: Path,
    teacher: Teacher,
    stored: Mapping[str, StoredPicture],
    questions: Mapping[str, Sequence[str]],
    *,
    most: int,
    grid: Tensor,
    processes: ProcessGroup,
    progress: Progress,
) -> Answers:
    """Return the answers, up to `most` tokens each, of all `stored` pictures; compute those not in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {digest: folder / f"{digest}.json" for digest in stored}
    known = {digest: json.loads(file.read_bytes()) for digest, file in files.items() if file.exists()}
    # Divided among the processes by all pictures, not by the missing ones: other processes are writing files already.
    share = sorted(stored)[processes.rank :: processes.size]
    mine = [digest for digest in share if set(questions[digest]) - set(known.get(digest, {}))]
    for digest in progress(mine, len(mine)):
        missing = [question for question in questions[digest] if question not in known.get(digest, {})]
        given = teacher.answer(merged(stored[digest]), missing, most, grid)
        partial = files[digest].with_suffix(".partial")
        every = known.get(digest, {}) | dict(zip(missing, given, strict=True))
        partial.write_text(json.dumps(every), encoding="utf-8")
        partial.replace(files[digest])
    processes.barrier()
    found = {digest: json.loads(file.read_bytes()) for digest, file in files.items()}
    return {digest: [(q, tuple(found[digest][q])) for q in questions[digest]] for digest in stored}
