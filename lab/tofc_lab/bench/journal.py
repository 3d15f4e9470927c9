"""Answers on disk, as they arrive: an interrupted run continues with the questions that have none.

    OUT.part: settings, then a line for each answer          OUT: the finished report, with all answers

Promises that answers to other questions, of another model or by other rules are not continued. Leaves the report to
`report`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any, Self

from tofc import json_text
from tofc.errors import UsageError
from tofc_lab.bench.asker import Reply
from tofc_lab.resume import differences

Key = tuple[str, str]  # way, question


class Journal:
    """The answers of one run. Use it with `with`."""

    def __init__(self, out: Path | None, settings: dict[str, Any]) -> None:
        """Read the answers that are there. Raises UsageError for those of other settings."""
        self.replies: dict[Key, Reply] = {}
        self._out = out
        self._settings = settings
        self._file: IO[str] | None = None
        if out is None:
            return
        self.part = out.with_name(out.name + ".part")
        if self.part.exists():
            self._read_part()
        elif out.exists():
            self._read_report(out)

    def __enter__(self) -> Self:
        if self._out is not None:
            fresh = not self.part.exists()
            self._file = self.part.open("a", encoding="utf-8")
            if fresh:
                self._write({"settings": self._settings})
                for (way, question), reply in self.replies.items():
                    self._write(_line(way, question, reply))
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, way: str, question: str, reply: Reply) -> None:
        """Keep an answer."""
        self.replies[way, question] = reply
        self._write(_line(way, question, reply))

    def finish(self) -> None:
        """Remove the answers' file, once the report has been written."""
        self.__exit__()
        if self._out is not None:
            self.part.unlink(missing_ok=True)

    def _write(self, value: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json_text.dumps(value) + "\n")
            self._file.flush()

    def _read_part(self) -> None:
        text = self.part.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # the last line may have been cut off
        try:
            first, *lines = [json.loads(line) for line in whole.splitlines()] or [{}]
            self._check(self.part, first["settings"])
            for line in lines:
                self.replies[line["way"], line["id"]] = _reply(line)
        except (ValueError, LookupError, TypeError):
            raise UsageError(f"{self.part} is not a file of answers; remove it to start again") from None
        if whole != text:
            self.part.write_text(whole, encoding="utf-8")

    def _read_report(self, out: Path) -> None:
        found = json_text.read(out)
        if not isinstance(found, dict) or not {"settings", "answers"} <= found.keys():
            raise UsageError(f"{out} exists and is no report of `tofc-lab bench`; name another file with --json")
        self._check(out, found["settings"])
        for line in found["answers"]:
            for way, answer in line["ways"].items():
                self.replies[way, line["id"]] = _reply(answer)

    def _check(self, file: Path, then: dict[str, Any]) -> None:
        if differ := differences(then, self._settings):
            raise UsageError(
                f"{file} has answers of another run: {'; '.join(differ)}. Name another file with --json, or remove it"
            )


def _line(way: str, question: str, reply: Reply) -> dict[str, Any]:
    return {"way": way, "id": question, **fields_of(reply)}


def fields_of(reply: Reply) -> dict[str, Any]:
    """Return an answer's fields, as the journal and the report have them."""
    found: dict[str, Any] = {"answer": reply.text, "picture_bytes": reply.picture_bytes}
    return found | ({} if reply.error is None else {"error": reply.error})


def _reply(line: dict[str, Any]) -> Reply:
    return Reply(text=line["answer"], picture_bytes=line["picture_bytes"], error=line.get("error"))
