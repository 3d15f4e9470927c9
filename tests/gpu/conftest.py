"""What tests of the pretended GPU share."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.pretended_gpu import pretend_gpu


@pytest.fixture
def gpu() -> Iterator[None]:
    """Let torch find one GPU."""
    with pretend_gpu():
        yield


def mutate(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str) -> None:
    """Replace a part of the source of `owner.name`, a function, method or class method."""
    stored = inspect.getattr_static(owner, name)
    plain = getattr(stored, "__func__", getattr(stored, "__wrapped__", stored))
    source = textwrap.dedent(inspect.getsource(plain))
    assert old in source, f"{name} has no {old!r} any more: change this test"
    scope: dict[str, Any] = {}
    exec(source.replace(old, new), sys.modules[plain.__module__].__dict__, scope)
    monkeypatch.setattr(owner, name, scope[name])
