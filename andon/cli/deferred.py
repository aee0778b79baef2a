"""Decides that a command's module is imported when the command is called, not when ``andon`` starts.

``andon.cli.main`` lists its commands with these. The list of commands shows what stands here; everything else
about a command, its own help too, comes out of its module.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand
from typer.main import get_group


class DeferredCommand(TyperCommand):
    """Stands for a command or a group of commands until it is called."""

    def __init__(self, name: str, place: str, summary: str) -> None:
        """``place`` is "module:attribute" of a command's function or of a ``typer.Typer``; ``summary`` is the
        first line of its help.
        """
        super().__init__(name=name, help=summary)
        self._name = name
        self._place = place

    def load(self) -> Any:  # typer's own copy of click's Command, which it does not make public
        """The command itself."""
        module, _, attribute = self._place.partition(":")
        target = getattr(import_module(module), attribute)
        holder = typer.Typer()
        if isinstance(target, typer.Typer):
            holder.add_typer(target, name=self._name)
        else:
            holder.command(self._name)(target)
        return get_group(holder).commands[self._name]

    def make_context(self, *arguments: Any, **settings: Any) -> Any:  # all of them private to typer
        """Begin a call: from here on the command itself is in charge."""
        return self.load().make_context(*arguments, **settings)
