"""``andon canary``: ship a version to a growing share of the users, watch it, promote or abort it."""

from __future__ import annotations

import getpass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.markup import escape

from andon.cli.endpoints import find_target
from andon.cli.exit_codes import EXIT_FAILED
from andon.cli.options import HomeOption
from andon.cli.output import JsonFlag, print_json, print_table, results
from andon.cli.tokens import has_own_name
from andon.client.canary import CanaryClient, RolloutPhase, RolloutState, RolloutWish
from andon.errors import InvalidArgumentError

app = typer.Typer(help="Ship a policy version behind a canary, and back.", no_args_is_help=True)

CanaryTarget = Annotated[str | None, typer.Option("--canary-target", help="Address of the canary service.")]
Actor = Annotated[
    str | None, typer.Option("--actor", help="Who acts; your token's or your login name when left out.")
]
_COLOURS = {
    RolloutPhase.PROMOTED: "green",
    RolloutPhase.ROLLED_BACK: "red",
    RolloutPhase.ROLLING_BACK: "red",
    RolloutPhase.ABORTED: "red",
    RolloutPhase.HELD: "yellow",
}


@app.command()
def start(
    candidate: Annotated[
        str, typer.Argument(help="The version to ship, such as policy/12 or policy@latest.")
    ],
    steps: Annotated[
        str, typer.Option("--steps", help="The canary's shares of the traffic in percent, such as 5,25,50.")
    ] = "",
    least: Annotated[
        float | None, typer.Option("--least", min=0, help="Seconds that each step lasts at least (60).")
    ] = None,
    longest: Annotated[
        float | None,
        typer.Option("--longest", min=0, help="Seconds after which a step that shows nothing ends (1800)."),
    ] = None,
    when_equal: Annotated[
        str, typer.Option("--when-equal", help="What becomes of an equal version: promote or hold.")
    ] = "promote",
    error_rate: Annotated[
        float | None,
        typer.Option("--error-rate", help="How often what is not good enough may be promoted (0.05)."),
    ] = None,
    boundary: Annotated[
        list[str] | None, typer.Option("--boundary", help="Move a gate's boundary: GATE=NUMBER.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="Leave a gate out, such as latency.")
    ] = None,
    people: Annotated[
        bool, typer.Option("--people", help="Have labelers compare canary and stable, too.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    canary_target: CanaryTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Begin a rollout. With --wait the exit code is 0 only for a version that was promoted."""
    if when_equal not in ("promote", "hold"):
        raise InvalidArgumentError("--when-equal is promote or hold", reason="INVALID_ROLLOUT")
    wish = RolloutWish(
        candidate=candidate,
        step_percents=_percents(steps),
        least_step_s=least,
        longest_step_s=longest,
        when_equal=cast(Literal["promote", "hold"], when_equal),
        promotion_error_rate=error_rate,
        boundaries=dict(_boundary(text) for text in boundary or ()),
        left_out_gates=tuple(without or ()),
        ask_people=people,
    )
    with _client(canary_target, home) as client:
        rollout = client.start(wish)
        if not wait:
            _show(rollout, as_json=as_json)
            return
        _follow(client, as_json=as_json)


@app.command()
def status(
    log: Annotated[int, typer.Option("--log", min=0, help="Also the newest so many decisions.")] = 5,
    follow: Annotated[bool, typer.Option("--follow", help="Show every change until it is over.")] = False,
    canary_target: CanaryTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the newest rollout: its phase, what each gate has seen, what was decided."""
    with _client(canary_target, home) as client:
        if follow:
            _follow(client, as_json=as_json)
            return
        rollout = client.get()
        decisions = list(islice(client.decisions(page_size=max(1, min(log, 500))), log)) if log else []
    if as_json:
        print_json({"rollout": rollout, "decisions": decisions})
        return
    _show(rollout, as_json=False)
    if decisions:
        print_table(
            None,
            ("when", "rollout", "what", "why"),
            [
                (
                    f"{decision.decision_time.astimezone():%Y-%m-%d %H:%M:%S}",
                    decision.rollout_id,
                    decision.kind.replace("_", " "),
                    decision.reason,
                )
                for decision in decisions
            ],
        )


@app.command()
def promote(
    reason: Annotated[str, typer.Argument(help="Why it is good enough.")],
    actor: Actor = None,
    canary_target: CanaryTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make the candidate stable although the evidence does not say so yet."""
    with _client(canary_target, home) as client:
        _show(client.promote(actor=actor or _own_name(), reason=reason), as_json=as_json)


@app.command()
def abort(
    reason: Annotated[str, typer.Argument(help="Why it has to go.")],
    actor: Actor = None,
    canary_target: CanaryTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Give all traffic back to stable."""
    with _client(canary_target, home) as client:
        _show(client.abort(actor=actor or _own_name(), reason=reason), as_json=as_json)


def _client(canary_target: str | None, home: Path | None) -> CanaryClient:
    return CanaryClient(find_target("canary", canary_target, home=home))


def _own_name() -> str:
    """Empty for whoever has a token of their own: the service knows the name."""
    return "" if has_own_name() else getpass.getuser()


def _percents(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InvalidArgumentError(
            f"--steps takes whole percents with commas, not {text!r}", reason="INVALID_ROLLOUT"
        ) from None


def _boundary(text: str) -> tuple[str, float]:
    gate, _equals, number = text.partition("=")
    try:
        return gate, float(number)
    except ValueError:
        raise InvalidArgumentError(
            f"--boundary takes GATE=NUMBER, not {text!r}", reason="INVALID_ROLLOUT"
        ) from None


def _follow(client: CanaryClient, *, as_json: bool) -> None:
    """Every change; ends with exit code 1 when the version was not promoted."""
    last: RolloutState | None = None
    told = ""
    for rollout in client.watch():
        last = rollout
        if as_json:
            print_json(rollout, indent=None)
            continue
        line = _line(rollout)
        if line != told:
            results().print(line, soft_wrap=True, highlight=False)
            told = line
    if last is not None and last.phase is not RolloutPhase.PROMOTED:
        raise typer.Exit(EXIT_FAILED)


def _line(rollout: RolloutState) -> str:
    colour = _COLOURS.get(rollout.phase, "cyan")
    why = escape(rollout.status or rollout.reason)
    return f"[{colour}]{rollout.phase.value}[/] {rollout.candidate} at {rollout.canary_percent} %: {why}"


def _show(rollout: RolloutState, *, as_json: bool) -> None:
    if as_json:
        print_json(rollout)
        return
    results().print(f"rollout {rollout.rollout_id}, stable {rollout.stable}", highlight=False)
    results().print(_line(rollout), soft_wrap=True, highlight=False)
    if rollout.status:
        results().print(f"  {escape(rollout.reason)}", soft_wrap=True, highlight=False)
    print_table(
        None,
        ("gate", "says", ">mean", ">boundary", ">seen", ">evidence for", ">against"),
        [
            (
                gate.name,
                f"{gate.verdict}, better" if gate.is_better else gate.verdict,
                "" if gate.mean is None else f"{gate.mean:+.3f}",
                f"{gate.boundary:+.3f}",
                f"{gate.observations}/{gate.least}" if gate.observations < gate.least else gate.observations,
                f"{gate.log_evidence_above:+.1f}",
                f"{gate.log_evidence_below:+.1f}",
            )
            for gate in rollout.gates
        ],
    )
