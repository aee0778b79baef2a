"""The ``andon`` command: puts the subcommands together and decides how they end.

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 a service cannot be reached, 130 ended by Ctrl-C. An
error of ours is one clear line on stderr. ANDON_TRACEBACK=1 shows where an unexpected one came from.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import andon
from andon.cli import (
    canary_commands,
    cord_commands,
    data_commands,
    demo_command,
    deploy_commands,
    evaluate_command,
    label_commands,
    model_commands,
    serving_commands,
    status_command,
    train_commands,
    up_command,
)
from andon.cli.exit_codes import EXIT_FAILED, EXIT_INVALID, exit_code
from andon.cli.output import print_error
from andon.errors import AndonError, InternalError, InvalidArgumentError


class AndonGroup(TyperGroup):
    """The root of all commands; turns errors into lines and exit codes."""

    def invoke(self, ctx: Any) -> Any:  # the context type is private to typer
        """Runs the chosen command."""
        try:
            return super().invoke(ctx)
        except AndonError as error:
            print_error(error)
            raise typer.Exit(exit_code(error)) from error
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            if error.filename is None or os.environ.get("ANDON_TRACEBACK") == "1":
                raise
            message = f"{error.filename}: {(error.strerror or str(error)).lower()}"
            print_error(InvalidArgumentError(message, reason="FILE"))
            raise typer.Exit(EXIT_INVALID) from error


app = typer.Typer(
    cls=AndonGroup,
    name="andon",
    help="Reinforcement learning from human feedback, with a cord that anyone may pull.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"andon {andon.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the root command; the callback of ``--version`` has acted already."""


app.command("up")(up_command.up)
app.command("demo")(demo_command.demo)
app.command("status")(status_command.status)
app.command("sample")(serving_commands.sample)
app.command("score")(serving_commands.score)
app.command("evaluate")(evaluate_command.evaluate)
app.add_typer(train_commands.app, name="train")
app.add_typer(label_commands.app, name="label")
app.add_typer(data_commands.app, name="data")
app.add_typer(model_commands.app, name="models")
app.add_typer(cord_commands.app, name="cord")
app.add_typer(canary_commands.app, name="canary")
app.add_typer(deploy_commands.app, name="deploy")


def main() -> None:
    """The entry point of the installed command."""
    try:
        app()
    except Exception as error:
        if os.environ.get("ANDON_TRACEBACK") == "1":
            raise
        print_error(
            InternalError(
                f"{type(error).__name__}: {error} (set ANDON_TRACEBACK=1 to see where)", reason="UNEXPECTED"
            )
        )
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
