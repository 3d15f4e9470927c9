"""A run of a few methods and the measurements that are there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tofc_lab.codec.compressai_parts", exc_type=ImportError)

from tofc import json_text
from tofc.errors import UsageError
from tofc_lab.rate_distortion import compare
from tofc_lab.rate_distortion.outcomes import OURS

SAME = {"model_id": "m", "seed": 0, "pictures": {"world train": 5, "world test": 9}, "codec_id": "c"}


def measured(size: float | None, **more: object) -> dict[str, Any]:
    """Return the report of one method."""
    return {"bytes": {"all": {"1 point": [size, 1.0, None]}}, "points": [], **more}


def test_a_run_of_a_few_methods_keeps_the_others(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert compare.earlier(out, SAME) == {"kinds": {}}
    before = {
        "uncompressed": {"all": 0.9},
        "methods": {OURS: measured(20.0), "A": measured(100.0), "B": measured(None)},
    }
    json_text.write(
        out, SAME | {"pictures": {"world train": 7, "world test": 9}, "date": "d", "kinds": {"world": before}}
    )
    kept = compare.earlier(out, SAME)["kinds"]["world"]
    now = {"uncompressed": {"all": 0.9}, "methods": {OURS: measured(10.0), "C": measured(5.0)}}
    methods = compare.with_earlier(now, kept)["methods"]
    assert list(methods) == [OURS, "A", "B", "C"]
    assert methods[OURS] is now["methods"][OURS] and "date" not in methods["C"]
    assert (methods["A"]["date"], methods["A"]["ours"]["all"]["1 point"]) == ("d", [0.1, None, None])
    assert methods["B"]["ours"]["all"]["1 point"] == [None, None, None]
    assert compare.with_earlier(now, None) is now


def test_measurements_of_other_pictures_or_another_codec_are_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    json_text.write(out, SAME | {"kinds": {}, "prefiltered": {}})
    assert compare.earlier(out, SAME).keys() == {"kinds", "prefiltered"}
    assert compare.earlier(out, SAME | {"codec_id": "other"}).keys() == {"kinds"}
    for key, value in (("model_id", "n"), ("seed", 1), ("pictures", {"world test": 8})):
        with pytest.raises(UsageError, match=f"out.json has measurements with {key} .*give another --out"):
            compare.earlier(out, SAME | {key: value})
    report = {"uncompressed": {"all": 0.9}, "methods": {OURS: measured(1.0)}}
    with pytest.raises(UsageError, match=r"uncompressed features gave .*0.8"):
        compare.with_earlier(report, report | {"uncompressed": {"all": 0.8}})
