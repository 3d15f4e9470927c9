"""Answers as models give them, and stranger ones, for the comparison with lmms-eval's and VLMEvalKit's functions."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

LETTERED = (
    "{L}", "{L}.", "({L})", "{L}) {T}", "{L}. {T}", "{L}: {T}", " {L} ", "\n{L}", "{l}", "{l}.", "**{L}**", "[{L}]",
    "The answer is {L}", "the correct option is ({L}).", "Answer: {L}", "My choice is {L}!", "{L}, {T}", "'{L}'",
    "{T}", "{T}.", "I think it is {T}", "The picture shows {T} and nothing else that matters here", "{T} or {U}",
    "{L} or {M}", "It could be {L}, but the answer is {M}.", "{L}.{M}.", "not {L}, ({M})", "({L}) or ({M})?",
    "A {T} is here", "A cat sits on {L} of them", "Option {L}", "option {l})", "답은 {L}", "答案是{M}", "选{L}。",
    "Choice {L} because it is the {T} that one sees, while the {U} is somewhere behind it", "I choose {L}; not {M}",
    "I pick {T}", "BAD", "CAB", "Apple", "{L}{M}", "a", "D'", "Both {L} and {M} :{L}.", "{L}).", "({L}).", ":{L}",
    "the best answer is that we know nothing", "{L} is right, as everybody in this room can easily see today, I hope",
    "We see it: {L} {T}; {M} {U}", "{T}\n{L}", "Final answer\n\n{L}.", "{L}\u00a0",
)  # fmt: skip
OTHER = (
    "", " ", "...", "?", "Z", "Z.", "none", "nan", "None of these", "Unknown", "Failed to obtain answer via API",
    "Sorry, I can't help with images of people yet.", "Cannot determine the answer", "yes", "Yes.", "YES", "y", "N",
    "n.", "No", "no, it is not", "Not at all", "Nope", "Yesterday", "I say yes", "yes and no", "It is (yes)",
    "maybe no?", "no-one", "yes/no", "well, yes; of course", "No.. really", "The answer is yes.", "1,2 yes", "so no",
)  # fmt: skip
OPEN = (
    "{T}", "{T}.", "The answer is {T}", "so it is {T}", "{t}", "It could be {U}, therefore {T}", "= {T}", "x = 42",
    "the number is 42.0", "1,042", "about 1e3", "4.2e1 or -3.5", "42", "42.004", "It says 42\nthus 7", "is .",
    "result :", "There are 2 of them", "2", "two", "is it 1? final 2", "yes, it is", "  {T} ",
    "nan", "inf", "final answer {T}!",
)  # fmt: skip


def answers(number: int, options: Sequence[str], right: str, count: int) -> list[str]:
    """Return `count` different answers to the question of this number; `right`: a text or letter that is right."""
    random = Random(f"answers {number}")
    letters = "ABCDEFGH"[: max(len(options), 2)]
    texts = list(options) or [right, "hat"]
    forms = [*LETTERED, *OTHER] if options else [*OPEN, *OTHER, *LETTERED[:6]]
    found = [right]
    while len(found) < count:
        first, second = random.choice(letters), random.choice(letters)
        text, other = random.choice(texts), random.choice(texts)
        made = random.choice(forms).format(L=first, M=second, l=first.lower(), T=text, U=other, t=text.upper())
        if made not in found:
            found.append(made)
    return found


#: pieces of answers, which `composed` puts together; {L}: a letter, {T}: an option's text
PIECES = (
    "{L}", "{L}", "({L})", "{L}.", "{L}:", "{L})", "{L},", ":{L}", "({L}).", "{L}).", "{T}", "{T}", "{T}.", "'",
    '"', "!", "the answer is", "answer is", "The correct answer is", "best answer is", "the correct option is",
    "best option is", "The choice is", "correct choice is", "I choose", "i select", "I pick", "my answer is",
    "My choice is", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは", "could be ", "so ",
    "is ", "thus ", "therefore ", "final ", "answer ", "result ", "= ", ":", "?", ";", ".", "...", "1,234",
    "12", "-3.50", ".5", "1e3", "1.2E-2", "7,8", "1,23", "x", "Z", "yes", "Yes.", "no", "No,", "NO!", "yes/no",
    "(yes)", "no-", "y", "n", "not", "İ", "A cat", "Both", "we see", "on the left of the picture",
    "Cannot determine the answer", "Failed to obtain answer via API", "none", "nan", "E", "{L} or {L}", "[{L}]",
    "*{L}*", "#{L}", "<{L}>", "{L}\u00a0",
)  # fmt: skip
JOINTS = ("", " ", " ", " ", "\n", ". ", ", ", "; ", " - ")
OPTIONS = (
    ("cat", "a hat", "No", "12"),
    ("yes", "no"),
    ("on the left", "on the right", "İstanbul", "x", "nan"),
)


def composed(number: int) -> tuple[str, tuple[str, ...]]:
    """Return an answer made of random pieces, and the options of its question."""
    random = Random(f"composed {number}")
    options = OPTIONS[number % len(OPTIONS)]
    text = random.choice(("", "", " ", "\n"))
    for _ in range(random.randint(1, 6)):
        piece = random.choice(PIECES).format(L=random.choice("ABCDE"[: len(options)]), T=random.choice(options))
        text += piece + random.choice(JOINTS)
    return text, options
