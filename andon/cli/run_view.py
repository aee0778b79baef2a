"""Decides how a training run looks while it is watched: one live line of progress and its latest metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from andon.client.trainer import GuardAlarm, ModelPublished, Progress, RunEvent, RunState, StateChanged

# What a person wants to see first, by stage; whatever else a stage reports is in the event stream.
HEADLINE_METRICS: Mapping[str, Sequence[str]] = {
    "sft": ("loss_nats_per_token", "validation_loss_nats_per_token", "learning_rate", "tokens_per_s"),
    "reward_model": (
        "detection_accuracy",
        "summary_detection_accuracy",
        "loss_nats",
        "accuracy",
        "validation_accuracy",
        "longer_wins_accuracy",
        "learning_rate",
    ),
    "ppo": ("score_mean", "kl_nats", "entropy_nats", "response_tokens", "policy_loss", "value_loss", "beta"),
}

SHOWN_ALARMS = 3  # the newest; all are in the event stream


@dataclass(slots=True)
class RunView:
    """What the screen shows of one run."""

    stage: str
    run_id: str
    state: RunState = RunState.PENDING
    message: str = ""
    progress: Progress | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    alarms: list[GuardAlarm] = field(default_factory=list)

    def take(self, event: RunEvent) -> None:
        """Brings one event into the picture."""
        match event.event:
            case StateChanged(state=state, message=message):
                self.state, self.message = state, message
            case Progress() as progress:
                self.progress = progress
                # Validation figures come every so many steps; the last ones stay in sight.
                self.metrics.update(progress.metrics)
            case ModelPublished(model=model, stored=True):
                self.models.append(str(model))
            case GuardAlarm() as alarm:
                self.alarms.append(alarm)

    def __rich__(self) -> RenderableType:
        """The picture."""
        line = Table.grid(padding=(0, 2))
        progress = self.progress
        title = Text(f"{self.stage} {self.state.value}", style="bold")
        if progress is None:
            line.add_row(title, Text(self.message))
            return line
        steps = f"{progress.step}/{progress.total_steps}" if progress.total_steps else str(progress.step)
        left = "" if progress.remaining_s is None else f"{clock_text(progress.remaining_s)} left"
        bar = ProgressBar(total=progress.total_steps or None, completed=progress.step, width=30)
        line.add_row(title, bar, steps, progress.phase, left, Text(self.message, style="yellow"))
        figures = [
            f"[dim]{escape(name)}[/] {self.metrics[name]:.4g}"
            for name in self._headline_names()
            if name in self.metrics
        ]
        shown: list[RenderableType] = [line, Text.from_markup("  ".join(figures))]
        shown += [Text(alarm_text(alarm), style="red") for alarm in self.alarms[-SHOWN_ALARMS:]]
        return Group(*shown)

    def _headline_names(self) -> Sequence[str]:
        known = [name for name in HEADLINE_METRICS.get(self.stage, ()) if name in self.metrics]
        return known or sorted(self.metrics)[:6]


def show_run(
    events: Iterator[RunEvent],
    view: RunView,
    console: Console,
    *,
    on_event: Callable[[RunEvent], None] | None = None,
) -> RunView:
    """Draws the run until its events end; without a terminal it prints a line now and then."""
    if not console.is_terminal:
        for event in events:
            view.take(event)
            if on_event is not None:
                on_event(event)
            if isinstance(event.event, StateChanged):
                console.print(
                    f"{view.stage} {view.run_id}: {view.state.value} {view.message}".rstrip(), soft_wrap=True
                )
            elif isinstance(event.event, GuardAlarm):
                text = f"{view.stage} {view.run_id}: {alarm_text(event.event)}"
                console.print(text, soft_wrap=True, markup=False)
        return view
    with Live(view, console=console, refresh_per_second=4, transient=True):
        for event in events:
            view.take(event)
            if on_event is not None:
                on_event(event)
    return view


def alarm_text(alarm: GuardAlarm) -> str:
    """An alarm on one line."""
    return f"guard {alarm.guard} ({alarm.action.value}) at update {alarm.step}: {alarm.message}"


def clock_text(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours and minutes."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}"
