"""Decides what reaches the screen: results on stdout, everything else on stderr, JSON where a program reads.

All commands print through here, so that ``--json`` leaves stdout to one JSON document (or one per line where
a command streams). Errors become one line with their reason and, where one is known, what to do about it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from andon.errors import AndonError
from andon.modeling.versions import ModelVersion

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]

# What a person can do about an error, by its reason.
HINTS: Mapping[str, str] = {
    "UNAVAILABLE": "start the services with `andon up`, or say where they are with --<service>-target",
    "MODEL_NOT_LOADED": "load one, for example `andon models load policy sft@latest`",
    "MODEL_NOT_FOUND": "`andon models list` shows what the store holds",
    "RUN_IN_PROGRESS": "`andon status` shows it; `andon train stop` or `andon train pause` ends it",
    "RUN_NOT_FOUND": "`andon train list` shows all runs",
    "CORD_NOT_PULLED": "`andon cord status` shows the last event",
    "QUEUE_FULL": "try again in a moment, or start more replicas",
    "MISSING_TOKEN": "set ANDON_TOKEN, or run where `andon up` runs: it finds the token in the home",
    "INVALID_TOKEN": "`andon label token NAME --role ROLE` makes a new one",
    "ROLE_NOT_ALLOWED": "use a token of another role in ANDON_TOKEN",
    "HOME_IN_USE": "`andon status` shows what runs there",
}


def results() -> Console:
    """Where results for people go."""
    return Console()


def messages() -> Console:
    """Where progress, notes and errors go."""
    return Console(stderr=True)


def print_json(value: object, *, indent: int | None = 2) -> None:
    """One JSON document on stdout; a stream of them uses ``indent=None`` so that each takes one line."""
    sys.stdout.write(json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def plain(value: object) -> Any:  # JSON: a nested mixture of dicts, lists, text, numbers and None
    """A value of ours as JSON types: dataclasses become objects, versions and paths text; numbers that are
    not finite, null.
    """
    if isinstance(value, ModelVersion):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    console: Console | None = None,
) -> None:
    """A table for people; columns whose name begins with ">" are set flush right."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        # Folded, not cut: what a person copies out of a table has to be whole.
        table.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    (console or results()).print(table)


def print_error(error: AndonError) -> None:
    """One line on stderr: the reason, the message, and what to do about it."""
    hint = HINTS.get(error.reason)
    line = f"[bold red]error[/] {escape(error.reason)}: {escape(error.message)}"
    messages().print(f"{line}\n  {escape(hint)}" if hint else line, soft_wrap=True, highlight=False)
