"""The 48 objects that nano knows, their glyphs and plurals.

Promises a fixed order: the index of a name is its class label in training. Leaves drawing to `scene`.
"""

from __future__ import annotations

GLYPHS: dict[str, str] = {
    "cat": "🐱", "dog": "🐶", "pig": "🐷", "frog": "🐸", "panda": "🐼", "lion": "🦁", "fox": "🦊",
    "penguin": "🐧", "owl": "🦉", "fish": "🐟", "octopus": "🐙", "turtle": "🐢", "apple": "🍎",
    "banana": "🍌", "grapes": "🍇", "orange": "🍊", "cherry": "🍒", "pizza": "🍕", "burger": "🍔",
    "cake": "🎂", "donut": "🍩", "car": "🚗", "bus": "🚌", "bicycle": "🚲", "rocket": "🚀",
    "airplane": "✈", "boat": "⛵", "train": "🚆", "house": "🏠", "tree": "🌳", "cactus": "🌵",
    "rose": "🌹", "sunflower": "🌻", "mushroom": "🍄", "star": "⭐", "moon": "🌙", "umbrella": "☂",
    "guitar": "🎸", "trumpet": "🎺", "ball": "⚽", "clock": "⏰", "key": "🔑", "lamp": "💡",
    "book": "📕", "phone": "📱", "camera": "📷", "gift": "🎁", "hat": "🎩",
}  # fmt: skip
NAMES: tuple[str, ...] = tuple(GLYPHS)

_IRREGULAR = {
    "fish": "fish",
    "grapes": "grapes",
    "cherry": "cherries",
    "bus": "buses",
    "octopus": "octopuses",
    "fox": "foxes",
}


def plural(name: str) -> str:
    """Return the plural, as used in questions.

    >>> plural("cat"), plural("fish"), plural("cherry")
    ('cats', 'fish', 'cherries')
    """
    return _IRREGULAR.get(name, name + "s")


def article(name: str) -> str:
    """Return the name with `a` or `an` before it.

    >>> article("owl"), article("grapes")
    ('an owl', 'grapes')
    """
    if name == "grapes":
        return name
    return ("an " if name[0] in "aeiou" else "a ") + name
