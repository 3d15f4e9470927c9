"""The same packets give the same symbols, and the same features the same packets, whatever the libraries use.

Each cell of the matrix is a process of its own, because these settings act only at its start. A cell asks its libraries
whether they accepted the setting. Settings that this machine does not support are skipped with a reason. Cells of
64-bit ARM run in an emulator, which `make arm` prepares.
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

from benchmarks.fuzz.packets import strip_crc, with_valid_crc
from tests.codec.cell import NANO, Job, digest, run_jobs, tower_features, tower_packets
from tofc.codec import Codec, CodecWeights
from tofc.codec.fake import fake_features, fake_weights
from tofc.codec.selective_hyperprior.fake import fake_selective_hyperprior

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = sorted(path.parent for path in (ROOT / "tests" / "codec" / "golden").glob("*/packets.json"))
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LOADER = Path("/lib64/ld-linux-x86-64.so.2")

Views = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Cell:
    """One environment. `accepted` decides from a process's report whether its libraries accepted the setting."""

    name: str
    environment: dict[str, str]
    accepted: Callable[[dict[str, Any]], bool]
    missing: str = ""  # why this machine does not support it, if so
    launcher: str = sys.executable  # is run with Python's arguments
    dtypes: list[str] = field(default_factory=list)  # of towers to run; if none, torch is not imported
    jobs: str = "."  # the folder of those that it does


def available() -> int:
    """Count the processors that this process may use."""
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
    """Return the cell of an OpenBLAS kernel; an unsupported one would crash the process at its first product."""
    missing = "" if __cpu_features__.get(needs) else f"this processor has no {needs}"
    # Old kernels report the name of their code; a build without a kernel reports which one it uses instead.
    return Cell(
        f"openblas-{name}",
        {"OPENBLAS_CORETYPE": name, "OPENBLAS_NUM_THREADS": "1"},
        lambda found: found.get("kernel") in (name, reported),
        missing,
    )


def glibc_without_fma() -> Cell:
    """Return the cell of the C library's exp and log without fused multiplication, which round differently."""
    environment = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F"}

    def active(more: dict[str, str]) -> set[str]:
        done = subprocess.run(
            [LOADER, "--list-diagnostics"], env=os.environ | more, capture_output=True, text=True, check=True
        )
        return {line for line in done.stdout.splitlines() if ".active" in line}

    try:
        missing = "" if active({}) != active(environment) else "the C library does not support this setting here"
    except (OSError, subprocess.CalledProcessError) as error:
        missing = f"the C library does not report its settings: {error}"
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


def arm(cpu: str, kernel: str, jobs: str = ".") -> Cell:
    """Return the cell of an emulated 64-bit ARM processor; by default OpenBLAS would not recognise it."""
    machine = os.environ.get("TOFC_ARM", "")  # the folder that .ci/arm made
    return Cell(
        f"arm-{cpu}",
        {"QEMU_CPU": cpu, "OPENBLAS_CORETYPE": kernel.upper(), "OPENBLAS_NUM_THREADS": "1"},
        lambda found: (found["machine"], found["kernel"]) == ("aarch64", kernel),
        "" if machine else "no emulated ARM machine: `make arm` prepares one",
        f"{machine}/python",
        jobs=jobs,
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
    glibc_without_fma(),
]
ARM = [
    arm("cortex-a72", "cortexa57"),
    arm("neoverse-n1", "neoversen1"),
    arm("a64fx", "a64fx", "golden"),  # products with SVE are twenty times slower than the others when emulated
    arm("max", "neoversev1", "golden"),
]
SLOW = [torch_cell("default", "SSE41", 1, "SSE41"), torch_cell("avx2", "AVX2", 2, "AVX2")]


#: codecs as wide as the released model's, and the sides of the grids that they are given: the published one codes 1536
#: numbers of each feature, so that larger grids take many minutes on an emulated machine
WIDE: dict[str, tuple[CodecWeights, tuple[int, ...]]] = {
    "context": (fake_weights(D=1536, M=64, seed=2, slices=8, hidden=96), (4, 6, 13)),
    "published": (fake_selective_hyperprior(D=1536, seed=2, experts=16, hyper=96, hidden=24), (2, 3)),
}


@dataclass(frozen=True)
class Matrix:
    """The jobs that every cell does, their results in this process, and the cells' reports so far."""

    folder: Path
    expected: dict[str, dict[str, list[str]]]
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)

    def report(self, cell: Cell) -> dict[str, Any]:
        if cell.missing:
            pytest.skip(cell.missing)
        if cell.name not in self.reports:
            self.reports[cell.name] = self._run(cell)
        found = self.reports[cell.name]["settings"]
        if not cell.accepted(found):
            if cell.name.startswith("openblas-"):
                pytest.skip(f"this numpy's BLAS answers {cell.environment} with {found.get('kernel', 'no name')}")
            pytest.fail(f"{cell.environment} was not accepted: {found}")
        return self.reports[cell.name]

    def _run(self, cell: Cell) -> dict[str, Any]:
        unset = {*THREADS, *(name for one in FAST + ARM + SLOW for name in one.environment)}
        clean = {name: value for name, value in os.environ.items() if name not in unset}
        done = subprocess.run(
            [cell.launcher, "-m", "tests.codec.cell", str(self.folder / cell.jobs), *cell.dtypes],
            env=clean | cell.environment | {"PYTHONPATH": str(ROOT / "shared")},
            cwd=ROOT, capture_output=True, text=True, check=False,
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
    return {dtype: tower_features(dtype) for dtype in ("float32", "bfloat16")}


@pytest.fixture(scope="module")
def matrix(tower_views: Views, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """Golden packets, nano's, those of a codec as wide as the released model's, and damaged ones."""
    made = tmp_path_factory.mktemp("matrix")
    for name, (weights, sides) in WIDE.items():
        weights.save(made / f"codec-{name}")
        _job(made, f"wide-{name}", made / f"codec-{name}", Codec(weights), _views(Codec(weights), sides))
    nano = Codec.load(NANO)
    _job(made, "nano", NANO, nano, _views(nano) | tower_views)
    for folder in GOLDEN:
        packets = [one["packet"] for one in json.loads((folder / "packets.json").read_text())]
        _job(made / "golden", folder.name, folder, Codec.load(folder), _views(Codec.load(folder)), packets)
    return Matrix(made, run_jobs(made))


def _views(codec: Codec, sides: tuple[int, ...] = (4, 6, 13)) -> Views:
    """Make features of several grids: ordinary ones, exact duplicates, features of few bits, and whole numbers."""
    views = {f"grid-{side}": fake_features(codec.weights, side**2, seed=side) for side in sides}
    ordinary = views[f"grid-{sides[1]}"]
    rng = np.random.default_rng(0)
    views["twins"] = ordinary[rng.integers(0, len(ordinary) // 4, len(ordinary))]
    views["few-bits"] = (ordinary.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # as bfloat16 has
    views["whole"] = rng.integers(-3, 4, ordinary.shape).astype(np.float32)  # many equal distances
    views["flat"] = np.ones_like(ordinary)
    return views


def _job(made: Path, name: str, folder: Path, codec: Codec, views: Views, packets: list[str] | None = None) -> None:
    """Make a job that encodes every view merged and unmerged, and decodes the packets and damaged copies."""
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
    """Yield packets that are shorter, longer, or have one byte changed; their checksums are valid."""
    content = strip_crc(packet)
    at = min(1 + place % max(len(content) - 1, 1), len(content) - 1)
    changed = content[:at] + bytes([content[at] ^ 1 << place % 8]) + content[at + 1 :]
    return [with_valid_crc(content[:-1]), with_valid_crc(content + b"\0"), with_valid_crc(changed)]


@pytest.mark.parametrize("cell", [*FAST, *ARM, *SLOW], ids=lambda cell: cell.name)
def test_a_cell_decodes_and_encodes_the_same(cell: Cell, matrix: Matrix) -> None:
    """Decoders must never differ. Encoders may, in the last bit of a float, but for these views they do not."""
    found = matrix.report(cell)["jobs"]
    wanted = matrix.expected.keys() if cell.jobs == "." else {folder.name for folder in GOLDEN}
    assert found.keys() == wanted
    for name in wanted:
        expected = matrix.expected[name]
        assert found[name]["decoded"] == expected["decoded"], f"{name}: the decoder differs"
        assert found[name]["encoded"] == expected["encoded"], f"{name}: the encoder differs"


@pytest.mark.parametrize("cell", SLOW, ids=lambda cell: cell.name)
def test_packets_of_a_cells_tower_are_decoded_the_same_here(cell: Cell, matrix: Matrix) -> None:
    nano = Codec.load(NANO)
    found = matrix.report(cell)["tower_packets"]
    assert found.keys() == {"float32", "bfloat16"} and found["float32"].keys() != found["bfloat16"].keys()
    for packets in found.values():
        assert packets == {packet: digest(nano, bytes.fromhex(packet)) for packet in packets}
        assert all(len(symbols) == 64 for symbols in packets.values()), "a packet was refused"


def test_packets_of_a_tower_on_a_gpu_are_decoded_the_same_here() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here")
    nano = Codec.load(NANO)
    for packets in tower_packets(["float32", "bfloat16"], "cuda").values():
        assert packets == {packet: digest(nano, bytes.fromhex(packet)) for packet in packets}
        assert all(len(symbols) == 64 for symbols in packets.values()), "a packet was refused"


def test_towers_of_different_precision_give_different_features(tower_views: Views) -> None:
    """Otherwise the matrix would compare equal packets."""
    assert (tower_views["float32"] != tower_views["bfloat16"]).any()


def test_the_matrix_covers_different_code_paths(matrix: Matrix) -> None:
    """Different settings really led to different code."""
    if not (HAVE and __cpu_features__.get("AVX2")):
        pytest.skip("this processor supports only one code path")
    plain, old = (matrix.report(cell)["settings"] for cell in (FAST[0], kernel("Nehalem", "SSE42")))
    assert plain["kernel"] != old["kernel"], "all cells used one BLAS kernel"
    without = matrix.report(numpy_without(HAVE))["settings"]
    assert plain["numpy"][HAVE[0]] and not without["numpy"][HAVE[0]]


def test_the_jobs_hold_valid_and_invalid_packets(matrix: Matrix) -> None:
    for one in matrix.expected.values():
        refused = {outcome for outcome in one["decoded"] if len(outcome) != 64}
        assert "NOT_CANONICAL" in refused and len(set(one["decoded"]) - refused) >= 9
