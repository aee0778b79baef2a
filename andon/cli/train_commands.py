"""``andon train``: start a training run, watch it, and steer it."""

from __future__ import annotations

from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from andon.cli.endpoints import find_target
from andon.cli.exit_codes import EXIT_FAILED
from andon.cli.options import HomeOption, TrainerTarget
from andon.cli.output import JsonFlag, messages, print_json, print_table, results
from andon.cli.run_view import RunView, show_run
from andon.cli.settings import Settings, apply_assignments, read_settings
from andon.client.trainer import Run, RunEvent, RunState, Stage, TrainerClient

app = typer.Typer(help="Train models by the trainer service.", no_args_is_help=True)


class OnInterrupt(StrEnum):
    """What Ctrl-C does to the run that is being watched."""

    DETACH = "detach"  # the run goes on
    PAUSE = "pause"  # it stands still at a checkpoint
    STOP = "stop"  # it ends for good, with a checkpoint


INTERRUPT_EFFECTS = {
    OnInterrupt.DETACH: "Ctrl-C leaves it running",
    OnInterrupt.PAUSE: "Ctrl-C pauses it",
    OnInterrupt.STOP: "Ctrl-C ends it for good",
}

ConfigOption = Annotated[Path | None, typer.Option("--config", help="The stage's settings as YAML or JSON.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting over the file; may be repeated."),
]
ResumeOption = Annotated[str | None, typer.Option("--resume", metavar="RUN", help="Continue this run.")]
DetachFlag = Annotated[bool, typer.Option("--detach", help="Do not watch the run.")]
InterruptOption = Annotated[OnInterrupt, typer.Option("--on-interrupt", help="What Ctrl-C does to the run.")]
RunArgument = Annotated[str, typer.Argument(help="The run, as `andon train list` shows it.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the record.")]
SourceHelp = "a JSONL file, a folder, or hf:NAME"


@app.command()
def sft(
    data: Annotated[
        str | None, typer.Option("--data", help=f"Documents with summaries: {SourceHelp}.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", help="A model of the store, a folder or a Hugging Face name."),
    ] = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    resume: ResumeOption = None,
    detach: DetachFlag = False,
    on_interrupt: InterruptOption = OnInterrupt.DETACH,
    trainer_target: TrainerTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune a language model on reference summaries."""
    settings = _settings(config, assignments, data=_source(data), base_model=base_model)
    target = find_target("trainer", trainer_target, home=home)
    _run("sft", settings, target, resume, detach=detach, on_interrupt=on_interrupt, as_json=as_json)


@app.command("reward-model")
def reward_model(
    comparisons: Annotated[
        str | None,
        typer.Option("--comparisons", help=f"People's decisions: {SourceHelp}, or labeling:BATCH."),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="The model to start from: sft@latest when left out.")
    ] = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    resume: ResumeOption = None,
    detach: DetachFlag = False,
    on_interrupt: InterruptOption = OnInterrupt.DETACH,
    trainer_target: TrainerTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a reward model on comparisons; reports accuracy on comparisons that were held out."""
    settings = _settings(config, assignments, comparisons=_source(comparisons), base_model=base_model)
    target = find_target("trainer", trainer_target, home=home)
    _run("reward_model", settings, target, resume, detach=detach, on_interrupt=on_interrupt, as_json=as_json)


@app.command()
def ppo(
    prompts: Annotated[
        str | None, typer.Option("--prompts", help=f"Documents to summarise: {SourceHelp}.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", help="Where the policy starts: sft@latest.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option("--reward-model", help="What it learns from: reward@latest.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="What it stays near: sft@latest.")
    ] = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    resume: ResumeOption = None,
    detach: DetachFlag = False,
    on_interrupt: InterruptOption = OnInterrupt.DETACH,
    trainer_target: TrainerTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Optimise a policy against the reward service by PPO."""
    settings = _settings(
        config, assignments, prompts=_source(prompts), policy=policy, reward_model=reward, reference=reference
    )
    target = find_target("trainer", trainer_target, home=home)
    _run("ppo", settings, target, resume, detach=detach, on_interrupt=on_interrupt, as_json=as_json)


@app.command("list")
def list_runs(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many runs.")] = 20,
    trainer_target: TrainerTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List runs, newest first."""
    with TrainerClient(find_target("trainer", trainer_target, home=home)) as client:
        runs = list(islice(client.list(), limit))
    if as_json:
        print_json(runs)
        return
    print_table(
        None,
        ["run", "stage", "state", ">step", "model", "begun", "note"],
        [
            (
                run.run_id,
                run.stage,
                run.state.value,
                f"{run.step}/{run.total_steps}",
                run.output_model or "",
                f"{run.create_time.astimezone():%Y-%m-%d %H:%M:%S}",
                run.status_message,
            )
            for run in runs
        ],
    )


@app.command()
def watch(
    run_id: RunArgument,
    on_interrupt: InterruptOption = OnInterrupt.DETACH,
    trainer_target: TrainerTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Watch a run until it ends."""
    with TrainerClient(find_target("trainer", trainer_target, home=home)) as client:
        _follow(client, client.get(run_id), on_interrupt=on_interrupt, as_json=as_json)


@app.command()
def pause(
    run_id: RunArgument,
    reason: ReasonOption = "",
    trainer_target: TrainerTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a run stand still at a checkpoint, within one optimizer step."""
    with TrainerClient(find_target("trainer", trainer_target, home=home)) as client:
        _show(client.pause(run_id, reason=reason), as_json=as_json)


@app.command()
def resume(
    run_id: RunArgument,
    trainer_target: TrainerTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Continue a paused, interrupted or failed run."""
    with TrainerClient(find_target("trainer", trainer_target, home=home)) as client:
        _show(client.resume(run_id), as_json=as_json)


@app.command()
def stop(
    run_id: RunArgument,
    reason: ReasonOption = "",
    trainer_target: TrainerTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """End a run for good, with a checkpoint."""
    with TrainerClient(find_target("trainer", trainer_target, home=home)) as client:
        _show(client.stop(run_id, reason=reason), as_json=as_json)


def _settings(config: Path | None, assignments: list[str] | None, **flags: str | None) -> Settings:
    """The file, then the command's own flags, then ``--set``."""
    settings = {} if config is None else read_settings(config)
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    return apply_assignments({**settings, **given}, assignments or [])


def _source(source: str | None) -> str | None:
    """A path of this machine made absolute: the trainer does not work in this folder."""
    if source is None:
        return None
    path, mark, split = source.partition("#")
    return f"{Path(path).absolute()}{mark}{split}" if Path(path).exists() else source


def _run(
    stage: Stage,
    settings: Settings,
    target: str,
    resumed_run: str | None,
    *,
    detach: bool,
    on_interrupt: OnInterrupt,
    as_json: bool,
) -> None:
    with TrainerClient(target) as client:
        run = client.start_run(stage, settings) if resumed_run is None else client.resume(resumed_run)
        if detach:
            _show(run, as_json=as_json)
        else:
            _follow(client, run, on_interrupt=on_interrupt, as_json=as_json)


def _follow(client: TrainerClient, run: Run, *, on_interrupt: OnInterrupt, as_json: bool) -> None:
    """Shows the run until it ends; exit code 1 when it did not succeed."""
    console = messages()
    console.print(f"run {run.run_id}; {INTERRUPT_EFFECTS[on_interrupt]}", highlight=False, soft_wrap=True)

    def print_event(event: RunEvent) -> None:
        if as_json:
            print_json({"kind": type(event.event).__name__, **_event_values(event)}, indent=None)

    view = RunView(stage=run.stage, run_id=run.run_id, state=run.state)
    try:
        show_run(client.watch_run(run.run_id), view, console, on_event=print_event)
    except KeyboardInterrupt:
        _interrupted(client, run.run_id, on_interrupt)
    ended = client.get(run.run_id)
    if as_json:
        print_json({"kind": "Run", "run": ended}, indent=None)
    else:
        _show(ended, as_json=False, metrics=view.metrics)
    if ended.state in (RunState.FAILED, RunState.STOPPED):
        raise typer.Exit(EXIT_FAILED)


def _interrupted(client: TrainerClient, run_id: str, on_interrupt: OnInterrupt) -> None:
    console = messages()
    match on_interrupt:
        case OnInterrupt.DETACH:
            console.print(f"the run goes on; `andon train watch {run_id}` shows it again", highlight=False)
        case OnInterrupt.PAUSE:
            console.print("pausing ...")
            client.pause(run_id, reason="Ctrl-C of its watcher")
            console.print(f"paused; `andon train resume {run_id}` lets it go on", highlight=False)
        case OnInterrupt.STOP:
            console.print("stopping ...")
            client.stop(run_id, reason="Ctrl-C of its watcher")


def _event_values(event: RunEvent) -> dict[str, object]:
    return {"sequence": event.sequence, "event_time": event.event_time, "event": event.event}


def _show(run: Run, *, as_json: bool, metrics: dict[str, float] | None = None) -> None:
    if as_json:
        print_json(run)
        return
    rows: list[tuple[str, object]] = [
        ("run", run.run_id),
        ("state", f"{run.state.value} {run.status_message}".rstrip()),
        ("step", f"{run.step} of {run.total_steps}" if run.total_steps else run.step),
    ]
    if run.output_model is not None:
        rows.append(("model", run.output_model))
    rows.extend((name, f"{value:.4g}") for name, value in sorted((metrics or {}).items()))
    print_table(None, [run.stage, ""], rows, console=results())
