"""A command imports what it needs and nothing of what other commands need."""

import pytest
import typer.main

from andon.cli.deferred import DeferredCommand
from andon.cli.main import COMMANDS, app
from tests.loaded_modules import FOR_SERVERS, HEAVY, modules_of_command


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_list_of_commands_says_what_each_says_of_itself(command: DeferredCommand) -> None:
    loaded = command.load()
    assert loaded.name == command.name
    assert loaded.help.split("\n\n")[0].replace("\n", " ") == command.help


def test_every_command_is_in_the_list() -> None:
    assert list(typer.main.get_command(app).commands) == [command.name for command in COMMANDS]


def test_the_list_of_commands_imports_none_of_them() -> None:
    modules = modules_of_command("--help")
    assert not {name for name in modules if name.endswith(("_command", "_commands"))}
    assert not modules & (HEAVY | FOR_SERVERS | {"grpc", "google.protobuf"})


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_commands_help_waits_for_no_heavy_library(command: DeferredCommand) -> None:
    modules = modules_of_command(str(command.name), "--help")
    assert not modules & (HEAVY | FOR_SERVERS)
