"""``andon cord``: stop training, let it go on, see who did and when."""

from __future__ import annotations

import getpass
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from andon.cli.endpoints import find_target
from andon.cli.options import HomeOption, LabelingTarget
from andon.cli.output import JsonFlag, print_json, print_table, results
from andon.cli.tokens import find_token, has_own_name
from andon.client.cord import Cord, CordClient

app = typer.Typer(help="Stop training, and let it go on again.", no_args_is_help=True)

Actor = Annotated[
    str | None, typer.Option("--actor", help="Who acts; your token's or your login name when left out.")
]


@app.command()
def pull(
    reason: Annotated[str, typer.Argument(help="Why training has to stop.")],
    actor: Actor = None,
    labeling_target: LabelingTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Stop training within one optimizer step. Anyone may."""
    with _client(labeling_target, home) as client:
        _show(client.pull(actor=actor or _own_name(), reason=reason), as_json=as_json)


@app.command()
def release(
    reason: Annotated[str, typer.Argument(help="Why it is safe to go on.")],
    actor: Actor = None,
    labeling_target: LabelingTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Let training go on."""
    with _client(labeling_target, home) as client:
        _show(client.release(actor=actor or _own_name(), reason=reason), as_json=as_json)


@app.command()
def status(
    labeling_target: LabelingTarget = None, home: HomeOption = None, as_json: JsonFlag = False
) -> None:
    """Show whether training may run."""
    with _client(labeling_target, home) as client:
        _show(client.get(), as_json=as_json)


@app.command()
def watch(labeling_target: LabelingTarget = None, home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """Show every pull and release until Ctrl-C."""
    with _client(labeling_target, home) as client:
        shown = None
        for cord in client.watch():
            # The service repeats the state so that a watcher knows it is heard.
            if cord != shown:
                _show(cord, as_json=as_json, indent=None)
            shown = cord


@app.command()
def log(
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only so many of the newest; all when left out.")
    ] = None,
    labeling_target: LabelingTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the record: every pull and release with who, when and why, newest first."""
    with _client(labeling_target, home) as client:
        events = list(islice(client.events(page_size=min(limit or 1000, 1000)), limit))
    if as_json:
        print_json(events)
        return
    print_table(
        None,
        (">event", "when", "what", "who", "why"),
        [
            (
                event.event_number,
                f"{event.event_time.astimezone():%Y-%m-%d %H:%M:%S}",
                "pulled" if event.action == "pull" else "released",
                event.actor,
                event.reason,
            )
            for event in events
        ],
    )


def _client(labeling_target: str | None, home: Path | None) -> CordClient:
    target = find_target("labeling", labeling_target, home=home)
    return CordClient(target, token=find_token(target, home=home))


def _own_name() -> str:
    """Empty for whoever has a token of their own: the service knows the name."""
    return "" if has_own_name() else getpass.getuser()


def _show(cord: Cord, *, as_json: bool, indent: int | None = 2) -> None:
    if as_json:
        print_json(cord, indent=indent)
        return
    state = "[bold red]pulled[/]" if cord.pulled else "[green]released[/]"
    if cord.event_time is None:
        results().print(f"{state}: nobody has touched the cord")
        return
    when = f"{cord.event_time.astimezone():%Y-%m-%d %H:%M:%S}"
    results().print(
        f"{state} by {cord.actor} at {when} (event {cord.event_number}): {cord.reason}", soft_wrap=True
    )
