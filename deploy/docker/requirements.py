"""Decides which packages an image gets, and refuses an image with a package that nobody pinned.

The Dockerfile runs it in its build, with nothing but the standard library and what pip has installed:

    python requirements.py list labeling canary > wanted.txt   the base in pyproject.toml and these extras
    python requirements.py check                               every installed version against the locks

The locks, requirements.lock and constraints.txt, pin more than an image needs, so pip gets them as
constraints. It takes a package that they lack at its newest version; ``check`` ends with 1 then. What another
package requires in one exact version is pinned too: torch names its CUDA libraries so.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

PROJECT = Path("pyproject.toml")
LOCKS = (Path("requirements.lock"), Path("constraints.txt"))
EXACT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*\(?==")


def wanted(project: Path, extras: Iterable[str]) -> list[str]:
    """The requirements of the project and of some of its extras. Raises KeyError for an unknown extra."""
    described = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    optional = described["optional-dependencies"]
    listed = [*described["dependencies"], *(line for extra in extras for line in optional[extra])]
    return sorted(set(listed))


def pinned(*locks: Path) -> dict[str, str]:
    """Version by name, as the locks have them."""
    lines = (line.strip() for lock in locks for line in lock.read_text(encoding="utf-8").splitlines())
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonical(name): version for name, version in pairs}


def unpinned(installed: Iterable[Distribution], pins: dict[str, str]) -> list[str]:
    """What is installed in another version than a lock's, or in a version that nothing decided."""
    found = list(installed)
    exact = {
        canonical(match[1])
        for distribution in found
        for requirement in distribution.requires or ()
        if (match := EXACT.match(requirement))
    }
    return sorted(
        f"{distribution.name} {distribution.version}"
        for distribution in found
        # A local part such as +cpu says how the same release was built.
        if pins.get(canonical(distribution.name)) != distribution.version.partition("+")[0]
        and (canonical(distribution.name) in pins or canonical(distribution.name) not in exact)
    )


def canonical(name: str) -> str:
    """One spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main(arguments: list[str]) -> int:
    """What the Dockerfile calls; returns the exit code."""
    match arguments:
        case ["list", *extras]:
            sys.stdout.write("\n".join(wanted(PROJECT, extras)) + "\n")
            return 0
        case ["check"]:
            loose = unpinned(distributions(), pinned(*LOCKS))
            sys.stderr.writelines(f"no lock pins {what}\n" for what in loose)
            return 1 if loose else 0
        case _:
            sys.stderr.write("usage: requirements.py list EXTRA... | check\n")
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
