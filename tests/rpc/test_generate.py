"""The committed code is what protos/ generates."""

from __future__ import annotations

import re
import shutil
from importlib import metadata
from pathlib import Path

import pytest

from tofc.rpc import generate

pytest.importorskip("grpc_tools", reason="the compiler is only installed for development")
if metadata.version("grpcio-tools") != generate.COMPILER:
    pytest.skip(f"another compiler writes other code: {generate.INSTALL}", allow_module_level=True)


def test_the_generated_code_is_fresh() -> None:
    assert generate.stale_files() == []
    assert generate.main(["--check"]) == 0


def test_a_change_of_the_contract_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (generate.SOURCE, generate.PACKAGE):
        shutil.copytree(generate.ROOT / folder, tmp_path / folder)
    contract = tmp_path / generate.SOURCE / "tofc.proto"
    contract.write_text(contract.read_text().replace("uint32 rows = 3;", "uint32 rows = 9;"))
    assert generate.stale_files(tmp_path) == ["tofc_pb2.py"]
    (tmp_path / generate.PACKAGE / "tofc_pb2_grpc.py").unlink()
    assert "tofc_pb2_grpc.py" in generate.stale_files(tmp_path)
    assert generate.main(["--wrong"]) == 2


@pytest.mark.parametrize("version", ["1.85.1", ""])
def test_another_compiler_or_none_is_named(
    version: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def installed(name: str) -> str:
        if not version:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", installed)
    assert generate.main(["--check"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith(
            f"grpcio-tools must be {generate.COMPILER}, got {version}" if version else "grpcio-tools is not installed"
        )
        and generate.INSTALL in error
    )


def test_the_committed_code_is_for_the_oldest_protobuf_allowed() -> None:
    oldest = re.search(r'"protobuf>=([\d.]+),', (generate.ROOT / "pyproject.toml").read_text())
    code = (generate.ROOT / generate.PACKAGE / "tofc_pb2.py").read_text()
    written = re.search(r"Protobuf Python Version: ([\d.]+)", code)
    assert oldest and written
    assert [int(one) for one in written[1].split(".")] <= [int(one) for one in oldest[1].split(".")]
