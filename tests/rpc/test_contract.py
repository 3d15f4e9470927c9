"""The contract only grows: every message keeps its field numbers and their types, whatever the fields are called.

`python -m tests.rpc.test_contract > tests/rpc/contract.txt` adds what is new; a line that disappears breaks it.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from tofc.v1 import tofc_pb2 as pb

GOLDEN = Path(__file__).with_name("contract.txt")


def lines() -> list[str]:
    """Return a line for every field of every message, for every enum's value, and for every call."""
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    fields = [f"{message.name} {one.number} {_type(one)}" for message in file.message_type for one in message.field]
    values = [f"{enum.name} {value.number} {value.name}" for enum in file.enum_type for value in enum.value]
    calls = [f"{call.name} {call.input_type} {call.output_type}" for one in file.service for call in one.method]
    return sorted(fields + values + calls)


def _type(field: FieldDescriptorProto) -> str:
    label = FieldDescriptorProto.Label.Name(field.label).removeprefix("LABEL_").lower()
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return f"{label} {field.type_name or kind}"


def test_the_contract_is_as_promised() -> None:
    assert lines() == GOLDEN.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    print("\n".join(lines()))
