"""The types of keywords, checked at run time for users without a type checker.

Promises an error that names the keyword, what it takes and what it got, instead of one from deep within the package.
Leaves ranges, and names that are checked against a list (such as `preset`), to their owners.
"""

from __future__ import annotations

from numbers import Integral, Real
from os import PathLike

import numpy as np

_Types = tuple[type, ...]
_WHOLE: tuple[str, _Types] = ("a whole number", (Integral,))  # NumPy's numbers too
_NUMBER: tuple[str, _Types] = ("a number", (Real,))
_TEXT: tuple[str, _Types] = ("a str", (str,))
_FLAG: tuple[str, _Types] = ("True or False", (Integral, np.bool_))
_FILE: tuple[str, _Types] = ("a path (str or pathlib.Path)", (str, PathLike))

_TYPES = {
    **dict.fromkeys(("max_tokens", "top_k", "seed", "vote", "token_budget"), _WHOLE),
    **dict.fromkeys(("features", "budget_bytes", "views_per_packet", "threads", "quality"), _WHOLE),
    **dict.fromkeys(("temperature", "top_p", "timeout_s", "wait_s", "scale"), _NUMBER),
    "address": ("a str or a list of them", (str, list, tuple)),
    **dict.fromkeys(("question", "token"), _TEXT),
    **dict.fromkeys(("thinking", "rollouts", "tls"), _FLAG),
    "pacore": ("low, medium, high or a whole number", (str, Integral)),
    **dict.fromkeys(("model", "token_file", "tls_ca", "tls_cert", "tls_key"), _FILE),
}
_REQUIRED = {"max_tokens", "token_budget", "address", "question", "thinking", "rollouts", "tls", "model"}  # not None


def check_types(**values: object) -> None:
    """Raise TypeError for a value whose type its keyword does not take. Other keywords pass.

    >>> check_types(features=12, preset=None)
    >>> check_types(features="12")
    Traceback (most recent call last):
    TypeError: features must be a whole number, got '12'
    """
    for name, value in values.items():
        if name not in _TYPES or (value is None and name not in _REQUIRED):
            continue
        expected, types = _TYPES[name]
        if not isinstance(value, types):
            got = type(value).__name__ if name == "token" else f"{value!r:.80}"  # a token must not get into a log
            raise TypeError(f"{name} must be {expected}, got {got}")
