"""The command that installs missing packages, fit for the way tofc itself was installed.

Promises a command that can be copied. The package is not on an index, so an extra is named by the path of the checkout
or, where there is none, by the packages that belong to it. Leaves detecting what is missing to the callers.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def install(extra: str, root: Path = ROOT) -> str:
    """Return the command that installs `extra`.

    >>> install("torch").removeprefix(sys.executable).replace(str(ROOT), "/src/tofc")
    " -m pip install -e '/src/tofc[torch]'"
    """
    if (root / "pyproject.toml").exists():
        wanted = ["-e", f"{root}[{extra}]"]
    else:
        from importlib import metadata  # slow, and needed for an error message only

        try:
            every = metadata.requires("tofc") or []
        except metadata.PackageNotFoundError:
            every = []
        of_extra = re.compile(rf""";\s*extra\s*==\s*["']{extra}["']\s*$""")
        wanted = [of_extra.sub("", one).strip() for one in every if of_extra.search(one)]
        if not wanted:  # neither a checkout nor an installed package, only a copy of the sources
            return f"install what pyproject.toml lists for {extra}"
    return pip_install(*wanted)


def pip_install(*wanted: str) -> str:
    """Return the command that installs packages for this interpreter: the `pip` on the path may belong to another."""
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])
