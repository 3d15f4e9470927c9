"""Options of a question: read from a column, asked about, and found in an answer by their text.

Promises what several sets and both rules have in common. Leaves letters in answers to `lmms_extraction` and
`vlmevalkit`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tofc_lab.bench.question import LETTERS, lettered
from tofc_lab.bench.tables import Row

#: what lmms-eval asks for below the options
DIRECTLY = "\nAnswer with the option's letter from the given choices directly."
#: and what where there are none
IN_A_WORD = "\nAnswer the question using a single word or phrase."


def option_list(row: Row, name: str) -> dict[str, str]:
    """Return a column's list of options by letter. Raises UsageError if it is none."""
    value = row.values.get(name)
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise row.wrong(name, f"must be a list of 2 to {len(LETTERS)} options, got {value!r:.60}")
    return lettered([str(one) for one in value])


def option_letter(row: Row, options: dict[str, str]) -> str:
    """Return the letter of the option whose index the column `answer` has. Raises UsageError."""
    text = row.text("answer")
    if not text.isdecimal() or int(text) >= len(options):
        raise row.wrong("answer", f"must be the index of an option, 0 to {len(options) - 1}, got {text!r}")
    return LETTERS[int(text)]


def only_text(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the only option whose text occurs in an answer."""
    found = [letter for letter, text in options.items() if text in answer]
    return found[0] if len(found) == 1 else None
