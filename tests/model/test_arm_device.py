"""A device on an emulated 64-bit ARM machine makes the packets of this machine, from the picture's file on.

`make arm` prepares the emulator. The machine has numpy, Pillow and safetensors, and no torch. Also asks pip whether
everything that a device installs has a wheel for ARM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from device_client.compute import Compute
from device_client.encoder import TowerEncoder
from tofc.codec import Codec
from tofc.model.open_image import open_image
from tofc.model.shipped import NANO

ROOT = Path(__file__).resolve().parents[2]
MACHINE = os.environ.get("TOFC_ARM", "")  # the folder that .ci/arm made
#: glibc 2.28 is that of Debian 10; pip takes exactly the tags that are named
TAGS = [f"manylinux{one}_aarch64" for one in ("2014", "_2_17", "_2_18", "_2_24", "_2_26", "_2_27", "_2_28")]
DEVICE = """
import json, platform, sys
from pathlib import Path
from device_client.encoder import TowerEncoder
from tofc.model.open_image import open_image
from tofc.model.shipped import NANO
encoder = TowerEncoder.open(NANO)
encoder.load()
packets = [one.packet.hex() for one in encoder.encode(open_image(Path(sys.argv[1])))]
print(json.dumps([platform.machine(), [name for name in ("torch", "grpc") if name in sys.modules], packets]))
"""


@pytest.mark.skipif(not MACHINE, reason="no emulated ARM machine: `make arm` prepares one")
@pytest.mark.parametrize(
    ("cpu", "kernel", "width"), [("cortex-a72", "CORTEXA57", 336), ("neoverse-n1", "NEOVERSEN1", 0)]
)
def test_an_arm_device_makes_the_packets_of_this_machine(cpu: str, kernel: str, width: int, tmp_path: Path) -> None:
    """One picture that is cut into crops, and the demo's."""
    file = NANO / "example.jpg"
    if width:
        open_image(file).resize((width, 200)).save(file := tmp_path / "wide.png")
    environment = {"QEMU_CPU": cpu, "OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [f"{MACHINE}/python", "-c", DEVICE, str(file)],
        cwd=ROOT,
        env=os.environ | environment | {"PYTHONPATH": f"{ROOT}:{ROOT / 'shared'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    machine, unwanted, packets = json.loads(done.stdout)
    encoder = TowerEncoder.open(NANO, compute=Compute(backend="torch"))  # the other implementation
    encoder.load()
    expected = [one.packet.hex() for one in encoder.encode(open_image(file))]
    assert (machine, unwanted) == ("aarch64", []) and packets == expected
    assert len(packets) == (3 if width else 1)
    codec = Codec.load(NANO)
    assert all(codec.decode(bytes.fromhex(packet)).q.size for packet in packets)


def test_everything_that_a_device_installs_has_a_wheel_for_arm(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("\n".join([*project["dependencies"], *project["optional-dependencies"]["device"]]))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--dry-run",
        "--quiet",
        "--retries=1",
        "--timeout=15",
    ]
    pip += ["--ignore-installed", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp"]
    pip += ["--abi=cp311", "--abi=abi3", "--abi=none", *(f"--platform={tag}" for tag in TAGS)]
    report = tmp_path / "report.json"
    pip += [f"--target={tmp_path / 'site'}", f"--report={report}", f"--requirement={wanted}"]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if "Failed to establish a new connection" in done.stderr or "Temporary failure in name resolution" in done.stderr:
        pytest.skip("the package index does not answer")
    assert done.returncode == 0, done.stderr
    files = {one["download_info"]["url"].rpartition("/")[2] for one in json.loads(report.read_text())["install"]}
    names = {file.split("-")[0].lower() for file in files}
    assert {"numpy", "grpcio", "pillow", "protobuf", "safetensors"} <= names and "torch" not in names
    assert all(file.endswith(("aarch64.whl", "none-any.whl")) for file in files), files
