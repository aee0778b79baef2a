"""How soon a pulled cord is heard, and how soon training stands still.

All parts are processes of their own, as an operator starts them: the labeling service on SQLite or on
PostgreSQL, there with a second process of it, tiny models behind policy, reference and reward service, and a
trainer with a PPO run that never ends by itself. The cord is pulled by the page, by the command, over gRPC,
by the webhook for alerts, and at the second process, at other moments of an update each time. A watcher
listens as a trainer does, and the run's own events say when it stands still, its checkpoint saved. Then the
same beside labelers who lease and answer without a pause, and with a trainer of two processes under torchrun.
In the first scene the labeling service is killed under the run too: how long until the run holds, and until
it goes on once the service is back.

Every round is checked: the watcher hears each event, the run stands and goes on each time, the record holds
every pull and release in order, and no answer of the labelers is lost. Times run from before the pull is
sent; for the command from the start of its process, which takes longer than all the rest.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from andon.client.cord import CordClient
from andon.client.trainer import Progress, Run, RunState, StateChanged, TrainerClient
from andon.modeling.store import ModelStore
from benchmarks import shapes
from benchmarks.cord_parts import (
    TIMEOUT_S,
    LabelingServer,
    Told,
    end_process,
    labelers_at_work,
    start_process,
)
from benchmarks.labeling_load import WrongAnswerError, begin_sessions
from benchmarks.labeling_processes import ENGINES, ROOT, holders, print_table, write_results
from benchmarks.ppo_update import draw_prompts, publish_models, service_process, write_prompts
from tests.cord_doors import Pull, by_command, by_page, by_rpc, by_webhook
from tests.postgres import PostgresServer
from tests.site import Person

DOORS = ("page", "command", "grpc", "webhook")
OTHER_PROCESS = "other process"  # of the labeling service: SQLite is for one
DOORS_OF_ENGINE: Mapping[str, Sequence[str]] = {"sqlite": DOORS, "postgresql": (*DOORS, OTHER_PROCESS)}
SHAPE = "nano"
UPDATES = 20_000  # likewise the run
RANKS = 2  # of the scene with several processes
DOCUMENT = ROOT / "docs" / "cord.md"
BEGIN, END = "<!-- measured: benchmarks/results/cord.json -->", "<!-- end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is measured."""

    engine: str
    num_labelers: int = 0  # who work meanwhile
    num_pulls: int = 10  # by each door
    num_kills: int = 0  # of the labeling service
    with_run: bool = True  # else only a watcher listens
    ranks: int = 1  # processes of the trainer; several under torchrun
    hold_s: float = 3.0  # how long the trainer does without the cord
    num_tasks: int = 2_000  # for the labelers, and as many again whenever they have done them

    @property
    def doors(self) -> Sequence[str]:
        """Where the cord is pulled."""
        return DOORS_OF_ENGINE[self.engine]


@dataclass(slots=True)
class Times:
    """What the pulls of one door took, in seconds."""

    recorded_s: list[float] = field(default_factory=list)  # until it is recorded
    watcher_s: list[float] = field(default_factory=list)  # until a watcher has word of it
    still_s: list[float] = field(default_factory=list)  # until the run stands still and has said so

    def since_recorded(self, times_s: Sequence[float]) -> list[float]:
        """The same times, but from the record on: without the start of a process, say."""
        return [time_s - recorded_s for time_s, recorded_s in zip(times_s, self.recorded_s, strict=True)]


class Round:
    """The parts of a scene, running."""

    def __init__(self, scene: Scene, folder: Path, stack: ExitStack) -> None:
        self.scene = scene
        self._stack = stack
        self._chance = random.Random(f"{scene.engine}/{scene.num_labelers}")
        people = [*holders("rita", role="researcher"), *holders("lara", role="labeler")]
        programs = holders("service", "alertmanager", "trainer", role="service")
        workers = holders(*(f"worker-{number}" for number in range(scene.num_labelers)), role="labeler")
        self.workers = workers
        self.tokens = {one.name: one.token for one in (*people, *programs)}
        self.database_url = f"sqlite:///{folder / 'labeling.sqlite3'}"
        if scene.engine == "postgresql":
            self.database_url = stack.enter_context(PostgresServer(durable=True)).new_database()
        everybody = [*people, *programs, *workers]
        self.labeling = LabelingServer("labeling", self.database_url, folder, everybody)
        self.other = LabelingServer("other", self.database_url, folder, everybody)
        for server in (self.labeling, self.other) if OTHER_PROCESS in scene.doors else (self.labeling,):
            server.start()
            stack.callback(server.end)
        self.researcher = stack.enter_context(CordClient(self.labeling.target, token=self.tokens["rita"]))
        self.watcher = Told()
        watching = stack.enter_context(CordClient(self.labeling.target, token=self.tokens["lara"]))
        self.watcher.follow(watching.watch)
        self.run: Told | None = None
        if scene.with_run:
            self._begin_run(folder)
        self.pulls = {door: self._pull_by(door) for door in scene.doors}

    def _begin_run(self, folder: Path) -> None:
        shape = shapes.SHAPES[SHAPE]
        store = ModelStore(folder / "store")
        publish_models(store, shape, shapes.codec(shape))
        prompts = folder / "prompts.jsonl"
        write_prompts(prompts, draw_prompts(32, 1, 4, 12, shape))
        targets = {
            name: self._stack.enter_context(service_process(name, store.root, 1)).target
            for name in ("policy", "reference", "reward")
        }
        start = [sys.executable]
        if self.scene.ranks > 1:
            start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.scene.ranks}"]
        command = [
            *(*start, "-m", "services.trainer", "--port=0", "--metrics-port=0", "--threads=1"),
            *(f"--store={store.root}", f"--runs={folder / 'runs'}", "--log-level=WARNING"),
            f"--policy-targets={json.dumps([targets['policy']])}",
            *(f"--reference-target={targets['reference']}", f"--reward-target={targets['reward']}"),
            *(f"--labeling-target={self.labeling.target}", f"--cord-hold-s={self.scene.hold_s}"),
        ]
        environment = {
            "ANDON_TRAINER_LABELING_TOKEN": self.tokens["trainer"],
            "GLOO_SOCKET_IFNAME": "lo",  # how ranks find each other
        }
        process, facts = start_process(command, folder / "trainer.log", **environment)
        self._stack.callback(end_process, process)
        client = self._stack.enter_context(TrainerClient(f"127.0.0.1:{facts['port']}"))
        run = client.start_run("ppo", self._run_config(prompts))
        self._stack.callback(client.stop, run.run_id)
        self.run = Told()
        self.run.follow(lambda: self._events(client, run))
        self.run.wait_for(lambda event: isinstance(event, Progress) and event.step >= 2, after_s=0)

    def _events(self, client: TrainerClient, run: Run) -> Iterator[Any]:
        for event in client.watch_run(run.run_id, stream_timeout_s=24 * 3600):
            yield event.event

    def _run_config(self, prompts: Path) -> Mapping[str, Any]:
        return {
            "prompts": str(prompts),
            "policy": "sft/1",
            "reference": "sft/1",
            "reward_model": "reward/1",
            "updates": UPDATES,
            "batch_prompts": 8,
            "samples_per_prompt": 2,
            "epochs": 4,
            "minibatches": 4,
            "max_new_tokens": 12,
            "learning_rate": 1e-6,  # so that a run of any length stays what it is
            "checkpoint_interval": 1_000_000,
            "guards": {"enabled": False},  # the cord is measured here, not they
        }

    def _pull_by(self, door: str) -> Pull:
        lara = self.tokens["lara"]
        if door == "page":
            person = self._stack.enter_context(
                Person(base_url=self.labeling.web_url, trust_env=False, timeout=TIMEOUT_S)
            )
            person.cookies.set("andon", begin_sessions(self.database_url, ["page-labeler"])["page-labeler"])
            return by_page(person)
        if door == "command":
            return by_command(self.labeling.target, lara)
        if door == "webhook":
            client = httpx.Client(base_url=self.labeling.web_url, trust_env=False, timeout=TIMEOUT_S)
            return by_webhook(self._stack.enter_context(client), self.tokens["alertmanager"])
        target = self.labeling.target if door == "grpc" else self.other.target
        return by_rpc(self._stack.enter_context(CordClient(target, token=lara)))

    def pull_once(self, door: str, times: Times) -> None:
        """Pull, wait until all know, let go, and wait until the run goes on."""
        before = self.researcher.get().event_number
        begin_s, begin_time_s = time.monotonic(), time.time()
        self.pulls[door]()
        heard_s = self.watcher.wait_for(lambda cord: cord.event_number > before, after_s=begin_s)
        times.watcher_s.append(heard_s - begin_s)
        if self.run is not None:
            still_s = self.run.wait_for(is_held_by_a_pull, after_s=begin_s)
            times.still_s.append(still_s - begin_s)
        cord = self.researcher.get()
        if not cord.pulled or cord.event_number != before + 1 or cord.event_time is None:
            raise WrongAnswerError(f"after one pull the cord is {cord}")
        times.recorded_s.append(cord.event_time.timestamp() - begin_time_s)
        released_s = time.monotonic()
        self.researcher.release(actor="", reason="measured")
        if self.run is not None:
            on_s = self.run.wait_for(is_state(RunState.RUNNING), after_s=released_s)
            self.run.wait_for(lambda event: isinstance(event, Progress), after_s=on_s)
        time.sleep(self._chance.uniform(0.0, 0.3))  # not always at the same place of an update

    def kill_once(self, held_s: list[float], on_again_s: list[float]) -> None:
        """Kill the labeling service under the run, and start it again once the run holds."""
        assert self.run is not None
        killed_s = time.monotonic()
        self.labeling.kill()
        still_s = self.run.wait_for(is_state(RunState.PAUSED), after_s=killed_s)
        held_s.append(still_s - killed_s)
        self.labeling.start()
        back_s = time.monotonic()
        on_s = self.run.wait_for(is_state(RunState.RUNNING), after_s=still_s)
        on_again_s.append(max(0.0, on_s - back_s))
        self.run.wait_for(lambda event: isinstance(event, Progress), after_s=on_s)

    def step_s(self) -> float:
        """The median time of an optimizer step."""
        assert self.run is not None
        reports = [event.metrics for event in self.run.words(Progress)]
        return statistics.median(report["optimise_seconds"] / report["optimizer_steps"] for report in reports)

    def check_record(self, num_pulls: int) -> None:
        """Every pull has its release, and nothing else is there."""
        events = list(self.researcher.events(page_size=1000))[::-1]
        if [event.event_number for event in events] != list(range(1, 2 * num_pulls + 1)):
            raise WrongAnswerError(f"{len(events)} events in the record of {num_pulls} pulls and releases")
        if [event.action for event in events] != ["pull", "release"] * num_pulls:
            raise WrongAnswerError("pulls and releases do not take turns in the record")


def is_state(state: RunState) -> Callable[[Any], bool]:
    """Whether an event says that the run came into a state."""
    return lambda event: isinstance(event, StateChanged) and event.state is state


def measure(scene: Scene) -> list[dict[str, object]]:
    """Pull again and again, check, and give a row for each door and one for the kills."""
    common = {"engine": scene.engine, "labelers": scene.num_labelers, "ranks": scene.ranks}
    rows: list[dict[str, object]] = []
    with TemporaryDirectory(prefix="andon-benchmark-") as name, ExitStack() as stack:
        running = Round(scene, Path(name), stack)
        times = {door: Times() for door in scene.doors}
        with ExitStack() as meanwhile:
            if scene.num_labelers:
                service_token = running.tokens["service"]
                target = running.labeling.target
                meanwhile.enter_context(
                    labelers_at_work(target, running.workers, service_token, num_tasks=scene.num_tasks)
                )
            for _ in range(scene.num_pulls):
                for door in scene.doors:
                    running.pull_once(door, times[door])
        running.check_record(scene.num_pulls * len(scene.doors))
        for door, taken in times.items():
            row: dict[str, object] = {"what": "pull", "door": door, **common, "pulls": scene.num_pulls}
            row |= summary("recorded_s", taken.recorded_s) | summary("watcher_s", taken.watcher_s)
            row |= summary("heard_after_record_s", taken.since_recorded(taken.watcher_s))
            if running.run is not None:
                row |= summary("still_s", taken.still_s) | {"optimizer_step_s": round(running.step_s(), 4)}
                row |= summary("still_after_record_s", taken.since_recorded(taken.still_s))
            rows.append(row)
        held_s: list[float] = []
        on_again_s: list[float] = []
        for _ in range(scene.num_kills):
            running.kill_once(held_s, on_again_s)
        if held_s:
            row = {"what": "kill", **common, "kills": scene.num_kills, "cord_hold_s": scene.hold_s}
            rows.append(row | summary("held_s", held_s) | summary("on_again_s", on_again_s))
    return rows


def is_held_by_a_pull(event: Any) -> bool:
    """Whether an event says that the run stands still for a pulled cord, and not for one that is unheard."""
    return is_state(RunState.PAUSED)(event) and event.message.startswith("the cord is pulled by ")


def summary(name: str, seconds: Sequence[float]) -> dict[str, object]:
    """The median and the largest of some times."""
    stem = name.removesuffix("_s")
    return {
        f"{stem}_median_s": round(statistics.median(seconds), 4),
        f"{stem}_max_s": round(max(seconds), 4),
    }


def table(results: Mapping[str, Any]) -> str:
    """What was measured, as the document shows it."""
    pulls = [row for row in results["rows"] if row["what"] == "pull"]
    lines = [
        "| pulled by | database | labelers | trainer processes | recorded | a watcher hears, after that "
        "| stands still, after that |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in pulls:
        cells = [
            f"{1000 * row[f'{name}_median_s']:,.0f} / {1000 * row[f'{name}_max_s']:,.0f} ms"
            for name in ("recorded", "heard_after_record", "still_after_record")
        ]
        facts = [row["door"], row["engine"], str(row["labelers"]), str(row["ranks"])]
        lines.append("| " + " | ".join([*facts, *cells]) + " |")
    steps = sorted(1000 * row["optimizer_step_s"] for row in pulls)
    count = pulls[0]["pulls"]
    slowest_s = max(row["watcher_max_s"] for row in pulls if row["door"] != "command")
    lines += [
        "",
        f"Median and largest of {count} pulls each. The record is timed from before the pull was sent, for "
        f"the command from the start of its process. From the sending of any other pull to the watcher's "
        f"word it took {slowest_s:.2f} s at most. An optimizer step took {steps[0]:.0f} to {steps[-1]:.0f} "
        f"ms in the median.",
    ]
    for row in results["rows"]:
        if row["what"] == "kill":
            lines += [
                "",
                f"Labeling service killed with `kill -9` under the run, `cord_hold_s` {row['cord_hold_s']:g} "
                f"({row['engine']}, {row['kills']} times): the run held after {row['held_median_s']:.1f} s "
                f"(at most {row['held_max_s']:.1f}), and went on {row['on_again_median_s']:.1f} s (at most "
                f"{row['on_again_max_s']:.1f}) after the service was ready again.",
            ]
    machine = results["machine"]
    lines += ["", f"{machine['cores']} cores, Python {machine['python']}."]
    return "\n".join(lines)


def with_table(document: str, results: Mapping[str, Any]) -> str:
    """The document with what was measured between its marks."""
    before, begin, rest = document.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write ``results/cord.json`` and the table in ``docs/cord.md``."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--engine", choices=ENGINES, action="append", help="default: both")
    flags.add_argument("--labelers", type=int, default=50, help="how many work in the loaded half")
    flags.add_argument("--pulls", type=int, default=10, help="by each door")
    flags.add_argument("--kills", type=int, default=5)
    flags.add_argument("--no-results", action="store_true", help="write nothing")
    arguments = flags.parse_args(argv)
    engines = arguments.engine or ENGINES
    scenes = [
        Scene(engine=engine, num_labelers=labelers, num_pulls=arguments.pulls)
        for engine in engines
        for labelers in (0, arguments.labelers)
    ]
    scenes[0] = replace(scenes[0], num_kills=arguments.kills)
    scenes.append(Scene(engine=engines[0], ranks=RANKS, num_pulls=arguments.pulls))
    rows: list[dict[str, object]] = []
    for scene in scenes:
        rows += measure(scene)
        print_table([row for row in rows if row["what"] == "pull"][-len(scene.doors) :])
    if not arguments.no_results:
        path = write_results("cord", rows)
        results = json.loads(path.read_text())
        DOCUMENT.write_text(with_table(DOCUMENT.read_text(), results))
        print(path)


if __name__ == "__main__":
    main()
