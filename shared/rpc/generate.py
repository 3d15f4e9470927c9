"""Writes the Python code of the contract: `python -m shared.rpc.generate`, or `--check` to only compare.

Promises that what is committed is what the pinned compiler makes of protos/; leaves the installing of
that compiler (grpcio-tools, only needed here) to `make`.
"""

import sys
import tempfile
from importlib import metadata
from pathlib import Path

#: of grpcio-tools; another version writes other code. Generated code asks for its own release of protobuf or a newer
#: one, so an old compiler's fits more environments. This one writes for 5.26, and is the last whose code does not warn
#: beside protobuf 6.30 to 6.32.
COMPILER = "1.65.5"
INSTALL = f"pip install --no-deps grpcio-tools=={COMPILER}"  # what it depends on is for its other half
ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "shared/rpc/tofc/v1"
SOURCE = "protos/tofc/v1"
NAMES = ("tofc_pb2.py", "tofc_pb2.pyi", "tofc_pb2_grpc.py")


def generate(out: Path, root: Path = ROOT) -> None:
    """Compiles the contract below `root` into `out`/shared/rpc/tofc/v1.

    The virtual path makes the proto's path equal the import path, so nothing is rewritten afterwards.
    """
    from grpc_tools import protoc  # type: ignore[import-untyped]

    code = protoc.main(
        [
            "protoc",
            f"-I{PACKAGE}={root / SOURCE}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--pyi_out={out}",
            f"{PACKAGE}/tofc.proto",
        ]
    )
    if code:
        raise RuntimeError(f"protoc ended with {code}; what it printed above names the line of tofc.proto to correct")


def drift(root: Path = ROOT) -> list[str]:
    """The generated files that differ from what the contract says now."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), root)
        fresh = {name: (Path(folder) / PACKAGE / name).read_bytes() for name in NAMES}
    stored = {name: root / PACKAGE / name for name in NAMES}
    return [name for name in NAMES if not stored[name].is_file() or stored[name].read_bytes() != fresh[name]]


def main(arguments: list[str]) -> int:
    try:
        installed = metadata.version("grpcio-tools")
    except metadata.PackageNotFoundError:
        print(f"grpcio-tools is not installed: {INSTALL} (it has builds for Python 3.12 and older)", file=sys.stderr)
        return 2
    if installed != COMPILER:
        print(f"grpcio-tools is {installed}, but another version writes other code: {INSTALL}", file=sys.stderr)
        return 2
    if arguments == ["--check"]:
        stale = drift()
        if stale:
            print(f"stale: {', '.join(stale)}; run python -m shared.rpc.generate", file=sys.stderr)
        return 1 if stale else 0
    if arguments:
        print(f"unknown arguments {arguments}; only --check is allowed", file=sys.stderr)
        return 2
    generate(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
