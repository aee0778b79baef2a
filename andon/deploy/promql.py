"""Decides which series a PromQL expression asks for, well enough to find a name that nobody makes."""

from __future__ import annotations

import re

_TEXT = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|`[^`]*`')
_COMMENT = re.compile(r"#[^\n]*")
_VARIABLE = re.compile(r"\$(?:\{[^}]*\}|\w+)")
_TEMPLATE = re.compile(r"\{\{.*?\}\}", re.DOTALL)
_BRACES = re.compile(r"\{[^{}]*\}")
_RANGE = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", re.IGNORECASE)
_NAME = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?!\s*\()(?![\w:])")
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan", "start", "end", "atan2"})


def series_in(expression: str) -> set[str]:
    """The names of all series; variables of a dashboard count as nothing."""
    # Argo's braces hold arguments and go before the texts that may stand in them.
    bare = _TEXT.sub('""', _COMMENT.sub("", _TEMPLATE.sub("", expression)))
    for pattern in (_VARIABLE, _RANGE, _BRACES, _GROUPING):
        bare = pattern.sub(" ", bare)
    # What is left of "offset 5m" and "1e3" begins with a digit and is no name.
    return {name for name in _NAME.findall(bare) if name.lower() not in _WORDS}
