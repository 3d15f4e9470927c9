"""Generates the Python code of the protocol: `python -m tofc.rpc.generate`, or `--check` to only compare.

Promises to use one pinned version of the compiler, so that the committed code can be compared. Leaves installing that
compiler (grpcio-tools, only needed here) to `make`.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import metadata
from pathlib import Path

#: version of grpcio-tools; another version writes different code. Generated code needs the compiler's protobuf or a
#: newer one, so an old compiler fits more environments. This one needs 5.26, and is the last whose code does not warn
#: with protobuf 6.30 to 6.32.
COMPILER = "1.65.5"
INSTALL = f"pip install --no-deps grpcio-tools=={COMPILER}"  # its dependencies are not needed for compiling
ROOT = Path(__file__).resolve().parents[3]
SOURCE = "protos/tofc/v1"
PACKAGE = "shared/tofc/v1"
NAMES = ("tofc_pb2.py", "tofc_pb2.pyi", "tofc_pb2_grpc.py")


def generate(out: Path, root: Path = ROOT) -> None:
    """Compile protos/ below `root` into `out`/tofc/v1.

    The proto's path is the import path, so nothing is rewritten afterwards.
    """
    from grpc_tools import protoc  # type: ignore[import-untyped]

    code = protoc.main(
        [
            "protoc",
            f"-I{root / 'protos'}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--pyi_out={out}",
            "tofc/v1/tofc.proto",
        ]
    )
    if code:
        raise RuntimeError(f"protoc ended with {code}; its output above names the line of tofc.proto to correct")


def stale_files(root: Path = ROOT) -> list[str]:
    """Return the names of generated files that differ from what protos/ now generates."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), root)
        fresh = {name: (Path(folder) / "tofc/v1" / name).read_bytes() for name in NAMES}
    stored = {name: root / PACKAGE / name for name in NAMES}
    return [name for name in NAMES if not stored[name].is_file() or stored[name].read_bytes() != fresh[name]]


def main(arguments: list[str]) -> int:
    """Generate, or compare; return the exit code."""
    try:
        installed = metadata.version("grpcio-tools")
    except metadata.PackageNotFoundError:
        print(f"grpcio-tools is not installed: {INSTALL} (it has builds for Python 3.12 and older)", file=sys.stderr)
        return 2
    if installed != COMPILER:
        print(
            f"grpcio-tools must be {COMPILER}, got {installed}, which writes different code: {INSTALL}", file=sys.stderr
        )
        return 2
    if arguments == ["--check"]:
        stale = stale_files()
        if stale:
            print(f"stale: {', '.join(stale)}; run python -m tofc.rpc.generate", file=sys.stderr)
        return 1 if stale else 0
    if arguments:
        print(f"the only argument allowed is --check, got {' '.join(arguments)}", file=sys.stderr)
        return 2
    generate(ROOT / "shared")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
