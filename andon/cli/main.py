"""The ``andon`` command: puts the subcommands together and decides how they end.

A subcommand is imported when it is called, so that none waits for what another one needs.

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
from andon.cli.deferred import DeferredCommand
from andon.cli.exit_codes import EXIT_FAILED, EXIT_INVALID, exit_code
from andon.cli.output import print_error
from andon.errors import AndonError, InternalError, InvalidArgumentError

COMMANDS = (
    DeferredCommand("up", "andon.cli.up_command:up", "Run all services on this machine until Ctrl-C."),
    DeferredCommand(
        "demo",
        "andon.cli.demo_command:demo",
        "Run the whole loop: fine-tune, sample, label, train a reward model, PPO, measure, report.",
    ),
    DeferredCommand(
        "status",
        "andon.cli.status_command:status",
        "Show the health of every service, the models in use, the current run and the cord.",
    ),
    DeferredCommand("sample", "andon.cli.serving_commands:sample", "Let the policy write summaries."),
    DeferredCommand(
        "score",
        "andon.cli.serving_commands:score",
        "Let the reward model score summaries: the larger, the better people would like them.",
    ),
    DeferredCommand(
        "evaluate",
        "andon.cli.evaluate_command:evaluate",
        "Compare policies with references, lead-3 and each other, and write a report.",
    ),
    DeferredCommand("train", "andon.cli.train_commands:app", "Train models by the trainer service."),
    DeferredCommand("label", "andon.cli.label_commands:app", "Collect comparisons."),
    DeferredCommand("data", "andon.cli.data_commands:app", "Filter and split data sets, with a manifest."),
    DeferredCommand("models", "andon.cli.model_commands:app", "Look into the model store."),
    DeferredCommand("cord", "andon.cli.cord_commands:app", "Stop training, and let it go on again."),
    DeferredCommand(
        "canary", "andon.cli.canary_commands:app", "Ship a policy version behind a canary, and back."
    ),
    DeferredCommand("deploy", "andon.cli.deploy_commands:app", "Render and check the Kubernetes manifests."),
)


class AndonGroup(TyperGroup):
    """The root of all commands; turns errors into lines and exit codes."""

    def __init__(self, **settings: Any) -> None:  # typer's
        super().__init__(**settings)
        for command in COMMANDS:
            self.add_command(command)

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
