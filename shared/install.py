"""How to install what is missing, as it works from where the user is.

Promises a command that can be copied: the package is on no index under its name, so an extra is named by the checkout
it runs from, or by the packages that it stands for. Leaves noticing that something is missing to its users.
"""

from __future__ import annotations

import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def install(extra: str, root: Path = ROOT) -> str:
    """The command that installs ``extra``.

    >>> install("device").removeprefix(sys.executable).replace(str(ROOT), "/src/tofc")
    " -m pip install -e '/src/tofc[device]'"
    """
    if (root / "pyproject.toml").exists():
        wanted = ["-e", f"{root}[{extra}]"]
    else:
        try:
            every = metadata.requires("tofc") or []
        except metadata.PackageNotFoundError:
            every = []
        of_extra = re.compile(rf""";\s*extra\s*==\s*["']{extra}["']\s*$""")
        wanted = [of_extra.sub("", one).strip() for one in every if of_extra.search(one)]
        if not wanted:  # a copy of the sources and nothing else
            return f"install what pyproject.toml lists for {extra}"
    return pip_install(*wanted)


def pip_install(*wanted: str) -> str:
    """The command that installs packages of others where this program runs: another pip may belong elsewhere."""
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])
