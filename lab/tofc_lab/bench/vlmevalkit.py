"""Prompts, letters and circles of VLMEvalKit's multiple choice, without a judge model (`exact_matching`).

Promises the prompt and the verdict of its own functions (`tests/lab/bench/oracles.json`; ms-vlmeval 0.0.20). Leaves
MME to its set.
"""

from __future__ import annotations

from collections.abc import Mapping

from tofc_lab.bench.benchmark_set import Rules
from tofc_lab.bench.choices import only_text
from tofc_lab.bench.question import Part, Question, Verdict, listed

MAX_TOKENS = 2048  # of its OpenAIWrapper
NONE = "Z"  # what it writes for an answer without a letter
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 5  # of an answer: a letter before them is not taken


def prompt(question: Question) -> tuple[Part, ...]:
    """Return the parts of a prompt: all pictures, then the text."""
    text = f"Hint: {question.hint}\n" if question.hint is not None else ""
    text += f"Question: {question.text}\n"
    if question.options:
        text += f"Options:\n{listed(question.options)}\nPlease select the correct answer from the options above. \n"
    return (*range(len(question.pictures)), text)


def plain_prompt(question: Question) -> tuple[Part, ...]:
    """Return the pictures and the question as it is."""
    return (*range(len(question.pictures)), question.text)


def judge(question: Question, answer: str) -> Verdict:
    """Read the letter of an answer."""
    found = choice(answer, question.options) or NONE
    return Verdict(extracted=found, right=found == question.answer)


def choice(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of an answer: alone among its last words, or the only option whose text occurs."""
    return _letter(answer, options) or _text(answer, options)


def _letter(answer: str, options: Mapping[str, str]) -> str | None:
    if "Failed to obtain answer via API" in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return NONE
    words = answer.translate(_PUNCTUATION).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1:
        return found[0] if words.index(found[0]) > len(words) - _LAST_WORDS else None
    return NONE if not found and NONE in words else None


def _text(answer: str, options: Mapping[str, str]) -> str | None:
    answer = answer.lower()
    if len(answer) > 2 * sum(map(len, options.values())):
        return None
    return only_text(answer, {letter: text.lower() for letter, text in options.items()})


MULTIPLE_CHOICE = Rules(prompt=prompt, judge=judge, max_tokens=MAX_TOKENS)
