"""Measurement of any codec on the pictures that `train-codec` holds out, and its comparison with another codec.

Promises the same pictures, questions, answers and way of choosing rates as the report of a training. Leaves the
measuring to `experiment` and `evaluate`.
"""

from __future__ import annotations

from pathlib import Path

from tofc import json_text
from tofc.codec.codec import Codec
from tofc.errors import UsageError
from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.distillation.evaluate import compare
from tofc_lab.distillation.experiment import Experiment, Job
from tofc_lab.progress import Log, NamedProgress


def judge_codec(job: Job, codec: Path, beside: Path | None, progress: NamedProgress, log: Log) -> None:
    """Measure the codec in the folder `codec` and write the report to `job.out`, a JSON file.

    `beside` is the report of another codec, which must be about the same pictures, questions and answers. Raises
    `UsageError` if it is not, and for faults of model, codec, data or questions.
    """
    loaded = Codec.load(codec)
    other = None if beside is None else json_text.read(beside)
    if other is not None and not (isinstance(other, dict) and isinstance(other.get("rates"), list)):
        raise UsageError(
            "--beside must be the report.json of a codec, of train-codec without --quick or of judge-codec, got "
            f"{beside}"
        )
    experiment = Experiment.open(job, ProcessGroup.join(), progress=progress, log=log, codec=codec, beside=other)
    if other is not None:
        experiment.check_comparable(other)
    report = experiment.report(experiment.evaluate(loaded)[1])
    if experiment.processes.rank:
        return
    if other is not None:
        report["beside"] = compare(report, other)
        ratio = report["beside"]["bytes at equal divergence"]
        result = "no divergence in common" if ratio is None else f"{ratio:.3f} × the bytes at equal divergence"
        log(f"{beside} beside {codec}: {result}")
    json_text.write(job.out, report)
