"""The same packets give the same symbols, and the same features the same packets, whatever the libraries use.

A matrix: each cell is a process of its own, because these settings act only at a start. A cell asks its libraries
whether they took the setting; what this machine does not have is skipped and says so. Cells of 64-bit ARM run in an
emulator, which `make arm` prepares.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from numpy.typing import NDArray

from benchmarks.fuzz.packets import content_of, mended
from shared.codec import Codec
from shared.codec.fake import fake_features, fake_weights
from tests.codec.cell import NANO, Job, digest, jobs, look, see

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = sorted(path.parent for path in (ROOT / "tests" / "codec" / "golden").glob("*/packets.json"))
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LOADER = Path("/lib64/ld-linux-x86-64.so.2")

Views = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Cell:
    """One environment. ``took`` tells from a process's report whether its libraries did as they were told."""

    name: str
    environment: dict[str, str]
    took: Callable[[dict[str, Any]], bool]
    missing: str = ""  # why this machine cannot have it
    launcher: str = sys.executable  # what takes Python's arguments
    dtypes: list[str] = field(default_factory=list)  # of the towers to look through; none: torch is not imported


def available() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(number: int) -> Cell:
    here = min(number, available())
    missing = "" if here == number else f"{number} threads on {here} processors"
    environment = dict.fromkeys(THREADS, str(number))
    return Cell(f"threads-{number}", environment, lambda found: found.get("threads", number) == number, missing)


def numpy_without(features: list[str]) -> Cell:
    return Cell(
        "numpy-without-" + "-".join(features),
        {"NPY_DISABLE_CPU_FEATURES": " ".join(features)},
        lambda found: not any(found["numpy"][name] for name in features),
    )


def kernel(name: str, needs: str, reported: str = "") -> Cell:
    """An OpenBLAS kernel; one that needs more than this processor would end the process at its first product."""
    missing = "" if __cpu_features__.get(needs) else f"this processor has no {needs}"
    # Old kernels go by the names of their code; a build may lack one and says then which it takes instead.
    return Cell(
        f"openblas-{name}",
        {"OPENBLAS_CORETYPE": name, "OPENBLAS_NUM_THREADS": "1"},
        lambda found: found.get("kernel") in (name, reported),
        missing,
    )


def mathematics() -> Cell:
    """The C library's exp and log without fused multiplication, which round differently."""
    environment = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F"}

    def active(more: dict[str, str]) -> set[str]:
        told = subprocess.run(
            [LOADER, "--list-diagnostics"], env=os.environ | more, capture_output=True, text=True, check=True
        )
        return {line for line in told.stdout.splitlines() if ".active" in line}

    try:
        missing = "" if active({}) != active(environment) else "the C library takes no such setting here"
    except (OSError, subprocess.CalledProcessError) as error:
        missing = f"the C library does not tell its settings: {error}"
    return Cell("glibc-without-fma", environment, lambda _: True, missing)


def torch_cell(capability: str, onednn: str, number: int, needs: str) -> Cell:
    missing = "" if __cpu_features__.get(needs) else f"this processor has no {needs}"
    environment = {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": onednn, "ONEDNN_VERBOSE": "1"}
    return Cell(
        f"torch-{capability}-{number}",
        environment | dict.fromkeys(THREADS, str(number)),
        lambda found: (
            found["torch"].lower() == capability
            and found["torch_threads"] == number
            and onednn in found["onednn"].replace(".", "")
        ),
        missing,
        dtypes=["float32", "bfloat16"],
    )


def arm(cpu: str, kernel: str) -> Cell:
    """A processor of 64-bit ARM, emulated; left alone, OpenBLAS would not know it and take its plainest kernel."""
    machine = os.environ.get("TOFC_ARM", "")  # the folder that .ci/arm made
    return Cell(
        f"arm-{cpu}",
        {"QEMU_CPU": cpu, "OPENBLAS_CORETYPE": kernel.upper(), "OPENBLAS_NUM_THREADS": "1"},
        lambda found: (found["machine"], found["kernel"]) == ("aarch64", kernel),
        "" if machine else "no emulated ARM machine: `make arm` prepares one",
        f"{machine}/python",
    )


HAVE = [name for name in __cpu_dispatch__ if __cpu_features__[name]]  # numpy's, least demanding first

FAST = [
    Cell("nothing-set", {}, lambda _: True),
    Cell("assertions-off", {"PYTHONOPTIMIZE": "2"}, lambda found: found["optimize"] == 2),
    threads(1),
    threads(2),
    threads(4),
    *(numpy_without(HAVE[keep:]) for keep in range(len(HAVE))),
    kernel("Prescott", "SSE3", "Katmai"),
    kernel("Nehalem", "SSE42"),
    kernel("Sandybridge", "AVX"),
    kernel("Haswell", "AVX2"),
    kernel("Zen", "AVX2"),
    kernel("SkylakeX", "AVX512_SKX"),
    kernel("Cooperlake", "AVX512BF16"),
    kernel("SapphireRapids", "AVX512_SPR"),
    mathematics(),
]
ARM = [
    arm("cortex-a72", "cortexa57"),
    arm("neoverse-n1", "neoversen1"),
    arm("a64fx", "a64fx"),
    arm("max", "neoversev1"),
]
SLOW = [torch_cell("default", "SSE41", 1, "SSE41"), torch_cell("avx2", "AVX2", 2, "AVX2")]


@dataclass(frozen=True)
class Matrix:
    """The jobs that every cell does, what this process makes of them, and the cells' reports so far."""

    folder: Path
    expected: dict[str, dict[str, list[str]]]
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)

    def report(self, cell: Cell) -> dict[str, Any]:
        if cell.missing:
            pytest.skip(cell.missing)
        if cell.name not in self.reports:
            self.reports[cell.name] = self._run(cell)
        found = self.reports[cell.name]["settings"]
        if not cell.took(found):
            if cell.name.startswith("openblas-"):
                pytest.skip(f"this numpy's BLAS answers {cell.environment} with {found.get('kernel', 'no name')}")
            pytest.fail(f"{cell.environment} was not taken: {found}")
        return self.reports[cell.name]

    def _run(self, cell: Cell) -> dict[str, Any]:
        unset = {*THREADS, *(name for one in FAST + ARM + SLOW for name in one.environment)}
        clean = {name: value for name, value in os.environ.items() if name not in unset}
        done = subprocess.run(
            [cell.launcher, "-m", "tests.codec.cell", str(self.folder), *cell.dtypes],
            env=clean | cell.environment, cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "unable to find CPU model" in done.stderr:
            pytest.skip(f"this emulator has no {cell.environment}")
        assert done.returncode == 0, f"{cell.environment} ended with {done.returncode}: {done.stderr[-2000:]}"
        *printed, last = done.stdout.splitlines()
        report: dict[str, Any] = json.loads(last)
        report["settings"]["onednn"] = next((line for line in printed if ",cpu,isa:" in line), "")
        return report


@pytest.fixture(scope="module")
def tower_views() -> Views:
    return {dtype: look(dtype) for dtype in ("float32", "bfloat16")}


@pytest.fixture(scope="module")
def matrix(tower_views: Views, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """Golden packets, nano's, those of a codec as wide as the released model's, and damaged ones."""
    made = tmp_path_factory.mktemp("matrix")
    wide = fake_weights(D=1536, M=64, seed=2, slices=8, hidden=96)
    wide.save(made / "codec")
    nano = Codec.load(NANO)
    _job(made, "wide", made / "codec", Codec(wide), _views(Codec(wide)))
    _job(made, "nano", NANO, nano, _views(nano) | tower_views)
    for folder in GOLDEN:
        packets = [one["packet"] for one in json.loads((folder / "packets.json").read_text())]
        _job(made, folder.name, folder, Codec.load(folder), _views(Codec.load(folder)), packets)
    expected = {name: job.run(made / name) for name, job in jobs(made).items()}
    return Matrix(made, expected)


def _views(codec: Codec) -> Views:
    """Features of several grids: ordinary ones, exact twins, features of few bits, and whole numbers."""
    views = {f"grid-{side}": fake_features(codec.weights, side**2, seed=side) for side in (4, 6, 13)}
    ordinary = views["grid-6"]
    rng = np.random.default_rng(0)
    views["twins"] = ordinary[rng.integers(0, 9, 36)]
    views["few-bits"] = (ordinary.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # as bfloat16 has
    views["whole"] = rng.integers(-3, 4, ordinary.shape).astype(np.float32)  # many equal distances
    views["flat"] = np.ones_like(ordinary)
    return views


def _job(made: Path, name: str, folder: Path, codec: Codec, views: Views, packets: list[str] | None = None) -> None:
    """Asks for every view twice, merged and whole; decodes what comes out, and damaged copies of it."""
    wanted: dict[str, int] = {}
    arrays: Views = {}
    for view, features in views.items():
        for n in (len(features) // 3, len(features)):
            wanted[f"{view}-{n}"], arrays[f"{view}-{n}"] = n, features
    ours = [codec.encode(arrays[key], n) for key, n in wanted.items()]
    good = [bytes.fromhex(packet) for packet in packets or []] + ours
    bad = [damaged for place, packet in enumerate(good) for damaged in _damaged(packet, place)]
    Job(codec=str(folder), packets=[packet.hex() for packet in good + bad], views=wanted).save(made / name, arrays)


def _damaged(packet: bytes, place: int) -> list[bytes]:
    """Shorter, longer, and with one byte changed; the checksums are right."""
    content = content_of(packet)
    at = min(1 + place % max(len(content) - 1, 1), len(content) - 1)
    changed = content[:at] + bytes([content[at] ^ 1 << place % 8]) + content[at + 1 :]
    return [mended(content[:-1]), mended(content + b"\0"), mended(changed)]


@pytest.mark.parametrize("cell", [*FAST, *ARM, *SLOW], ids=lambda cell: cell.name)
def test_a_cell_decodes_and_encodes_the_same(cell: Cell, matrix: Matrix) -> None:
    """Decoders may never differ. Encoders may, in a feature's last bit; that of these views decides nothing."""
    found = matrix.report(cell)["jobs"]
    assert found.keys() == matrix.expected.keys()
    for name, expected in matrix.expected.items():
        assert found[name]["decoded"] == expected["decoded"], f"{name}: the decoder differs"
        assert found[name]["encoded"] == expected["encoded"], f"{name}: the encoder differs"


@pytest.mark.parametrize("cell", SLOW, ids=lambda cell: cell.name)
def test_what_a_tower_sees_elsewhere_is_decoded_the_same_here(cell: Cell, matrix: Matrix) -> None:
    nano = Codec.load(NANO)
    seen = matrix.report(cell)["seen"]
    assert seen.keys() == {"float32", "bfloat16"} and seen["float32"].keys() != seen["bfloat16"].keys()
    for packets in seen.values():
        assert packets == {packet: digest(nano, bytes.fromhex(packet)) for packet in packets}
        assert all(len(symbols) == 64 for symbols in packets.values()), "a packet was refused"


def test_what_a_tower_sees_on_a_gpu_is_decoded_the_same_here() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here")
    nano = Codec.load(NANO)
    for packets in see(["float32", "bfloat16"], "cuda").values():
        assert packets == {packet: digest(nano, bytes.fromhex(packet)) for packet in packets}
        assert all(len(symbols) == 64 for symbols in packets.values()), "a packet was refused"


def test_towers_of_other_precision_see_otherwise(tower_views: Views) -> None:
    """Else the matrix would compare a thing with itself."""
    assert (tower_views["float32"] != tower_views["bfloat16"]).any()


def test_the_matrix_is_no_single_cell(matrix: Matrix) -> None:
    """Of what this processor could do, several ways were really taken."""
    if not (HAVE and __cpu_features__.get("AVX2")):
        pytest.skip("this processor has one way only")
    plain, old = (matrix.report(cell)["settings"] for cell in (FAST[0], kernel("Nehalem", "SSE42")))
    assert plain["kernel"] != old["kernel"], "one BLAS kernel for all"
    without = matrix.report(numpy_without(HAVE))["settings"]
    assert plain["numpy"][HAVE[0]] and not without["numpy"][HAVE[0]]


def test_the_jobs_hold_packets_and_what_is_none(matrix: Matrix) -> None:
    for one in matrix.expected.values():
        refused = {outcome for outcome in one["decoded"] if len(outcome) != 64}
        assert "NOT_CANONICAL" in refused and len(set(one["decoded"]) - refused) >= 9
