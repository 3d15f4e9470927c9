"""The list of image files that answer as well: made from the measurements, shipped with nano, copied to devices."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from device_client.equal_files import read_equal_files
from device_client.picture import ImageForm
from tofc.codec.files import load_config
from tofc.errors import UsageError
from tofc.model.feature_codecs import CODEC_FILES, IMAGE_FILES
from tofc.model.image_codec import compress
from tofc.model.open_image import open_image
from tofc.model.shipped import NANO
from tofc_lab.rate_distortion import equal_files

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "rate_distortion.json"


def test_nanos_list_is_that_of_the_measurements(tmp_path: Path) -> None:
    for name in CODEC_FILES:
        shutil.copyfile(NANO / name, tmp_path / name)
    assert equal_files.write(RESULTS, tmp_path).read_bytes() == (NANO / IMAGE_FILES).read_bytes()


def test_a_more_precise_preset_needs_no_worse_file() -> None:
    presets = load_config(NANO).presets
    forms = [read_equal_files(NANO, name) for name in sorted(presets, key=lambda name: presets[name])]
    drawn = open_image(NANO / "example.jpg")
    for kind in ("one_view", "crops"):
        files = [getattr(form, kind) for form in forms]
        sizes = [len(compress(drawn, one.codec, one.quality, one.scale)) for one in files]
        assert sizes == sorted(sizes)
    assert forms[-1].crops == ImageForm(codec="webp", quality=3)


def test_results_of_another_codec_are_refused() -> None:
    with pytest.raises(UsageError, match=r"is about the codec .*context holds .*; run `tofc-lab rate-distortion`"):
        equal_files.write(RESULTS, NANO / "codecs" / "context")
