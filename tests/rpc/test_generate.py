"""What is committed is what the contract says."""

import shutil
from importlib import metadata
from pathlib import Path

import pytest

from shared.rpc import generate

pytest.importorskip("grpc_tools", reason="the compiler is only installed for development")


def test_the_generated_code_is_fresh() -> None:
    if metadata.version("grpcio-tools") != generate.COMPILER:
        pytest.skip(f"another compiler writes other bytes; install grpcio-tools=={generate.COMPILER}")
    assert generate.drift() == []
    assert generate.main(["--check"]) == 0


def test_a_change_of_the_contract_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (generate.SOURCE, generate.PACKAGE):
        shutil.copytree(generate.ROOT / folder, tmp_path / folder)
    contract = tmp_path / generate.SOURCE / "tofc.proto"
    contract.write_text(contract.read_text().replace("uint32 rows = 3;", "uint32 rows = 9;"))
    assert generate.drift(tmp_path) == ["tofc_pb2.py"]
    (tmp_path / generate.PACKAGE / "tofc_pb2_grpc.py").unlink()
    assert "tofc_pb2_grpc.py" in generate.drift(tmp_path)
    assert generate.main(["--wrong"]) == 2
