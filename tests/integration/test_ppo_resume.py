"""kill -9 of any process in the middle of PPO: the run goes on, with the numbers of a run left alone.

Every service is a process of its own, started as an operator starts it, with tiny models on one CPU thread.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from andon.client.cord import CordClient
from andon.client.trainer import (
    ModelPublished,
    Progress,
    Run,
    RunEvent,
    RunState,
    StateChanged,
    TrainerClient,
)
from andon.modeling.loading import new_causal_lm, save_model, scorer_from_causal_lm
from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import ModelStore
from andon.modeling.text import word_level_codec
from tests.tokens import TOKENS, write_tokens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TIMEOUT_S = 1200
UPDATES = 12
CHECKPOINT_INTERVAL = 3
WORDS = [f"word{number}" for number in range(20)]
ARCHITECTURE = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "n_positions": 64,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}


class Process:
    """One service."""

    def __init__(self, name: str, *flags: str, log: Path) -> None:
        self.name = name
        self._flags = flags
        self._log = log
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start on the same port as before and wait for the ready line."""
        with self._log.open("a") as log:
            process = self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    f"services.{self.name}",
                    f"--port={self.port}",
                    "--metrics-port=0",
                    *self._flags,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ANDON_READY "), self._log.read_text()[-2000:]
        self.port = json.loads(line.removeprefix("ANDON_READY "))["port"]

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(how)
        code = self.process.wait(timeout=120)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return code


class World:
    """Five processes and a store with two tiny models."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.store = ModelStore(folder / "store")
        self._stack = stack
        self._make_models()
        self._make_prompts()
        store = f"--store={self.store.root}"
        self.labeling = self.run(
            "labeling",
            f"--database=sqlite:///{folder}/labeling.sqlite3",
            f"--tokens-file={write_tokens(folder)}",
            "--web-port=0",
        )
        self.policy = self.run("policy", store)
        self.reference = self.run("reference", store)
        self.reward = self.run("reward", store)

    def run(self, name: str, *flags: str) -> Process:
        process = Process(name, *flags, log=self.folder / f"{name}.log")
        self._stack.callback(process.kill)
        process.start()
        return process

    def start_trainer(self, runs: str) -> tuple[Process, TrainerClient]:
        process = self.run(
            "trainer",
            f"--store={self.store.root}",
            f"--runs={self.folder / runs}",
            f"--policy-targets={json.dumps([self.policy.target])}",
            f"--reference-target={self.reference.target}",
            f"--reward-target={self.reward.target}",
            f"--labeling-target={self.labeling.target}",
            f"--labeling-token={TOKENS['service']}",
            "--threads=1",
            "--cord-hold-s=60",
            "--peer-patience-s=600",
        )
        return process, self._stack.enter_context(TrainerClient(process.target))

    def config(self, **changes: Any) -> dict[str, Any]:
        return {
            "prompts": str(self.folder / "prompts.jsonl"),
            "policy": "sft/1",
            "reference": "sft/1",
            "reward_model": "reward/1",
            "updates": UPDATES,
            "batch_prompts": 8,
            "samples_per_prompt": 2,
            "minibatches": 2,
            "epochs": 2,
            "learning_rate": 1e-3,
            "temperature": 1.0,
            "max_new_tokens": 12,
            "checkpoint_interval": CHECKPOINT_INTERVAL,
            "store_interval": 5,
            "kl": {"kind": "adaptive", "beta": 0.1, "target": 0.5, "horizon": 200},
            **changes,
        }

    def _make_models(self) -> None:
        codec = word_level_codec(WORDS, max_document_tokens=16)
        policy = new_causal_lm(ARCHITECTURE, codec, 1)
        self.store.publish(
            "sft",
            lambda folder: save_model(policy, codec, folder),
            manifest=ManifestDraft(kind="causal_lm"),
        )
        scorer = scorer_from_causal_lm(self.store.resolve("sft/1").path, seed=2)
        self.store.publish(
            "reward",
            lambda folder: save_model(scorer, codec, folder),
            manifest=ManifestDraft(kind="reward_model"),
        )

    def _make_prompts(self) -> None:
        chance = random.Random(0)
        lines = [
            json.dumps({"id": str(number), "document": " ".join(chance.choices(WORDS, k=4 + number % 9))})
            for number in range(20)
        ]
        (self.folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


def follow(client: TrainerClient, run: Run, act: Callable[[int], None] = lambda step: None) -> list[RunEvent]:
    """All events of the run; ``act`` is called once after each new update. It may kill the trainer."""
    events: list[RunEvent] = []
    furthest = 0
    for event in client.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S):
        events.append(event)
        if isinstance(event.event, Progress) and event.event.step > furthest:
            furthest = event.event.step
            act(furthest)
    ended = client.get(run.run_id)
    assert ended.state is RunState.SUCCEEDED, ended.status_message
    return events


def numbers(events: list[RunEvent]) -> dict[int, dict[str, float]]:
    """What each update reported, but for times and versions; replayed updates must repeat themselves."""
    reports: dict[int, dict[str, float]] = {}
    for event in events:
        if isinstance(event.event, Progress):
            report = {
                name: value
                for name, value in event.event.metrics.items()
                if not name.endswith("_seconds") and name != "policy_version"
            }
            assert reports.setdefault(event.event.step, report) == report
    return reports


def stored(events: list[RunEvent]) -> list[str]:
    """The digests of the stored models, in order, repetitions left out."""
    digests = [
        event.event.model.weights_sha256
        for event in events
        if isinstance(event.event, ModelPublished) and event.event.stored
    ]
    return list(dict.fromkeys(digests))


@pytest.mark.parametrize(
    "changes", [{}, {"max_staleness": 1, "sample_parts": 2}], ids=["in turn", "sampling ahead"]
)
def test_no_death_of_a_process_and_no_pull_of_the_cord_changes_a_number(
    world: World, changes: dict[str, Any]
) -> None:
    trainer, client = world.start_trainer("alone")
    alone = follow(client, client.start_run("ppo", world.config(**changes)))
    assert trainer.terminate() == 0

    trainer, client = world.start_trainer("disturbed")
    run = client.start_run("ppo", world.config(**changes))

    def disturb(step: int) -> None:
        killed = {1: world.policy, 2: world.reward, 3: world.reference, 5: trainer, 7: world.labeling}
        if step in killed:
            killed[step].kill()
            killed[step].start()
        if step == 4:
            assert trainer.terminate() == 0
            trainer.start()
        if step == 6:
            pull_and_release(world, client, run)

    disturbed = follow(client, run, disturb)

    assert list(numbers(alone)) == list(range(1, UPDATES + 1))
    assert numbers(disturbed) == numbers(alone)
    assert stored(disturbed) == stored(alone)
    assert len(stored(alone)) == 3
    states = [event.event.state for event in disturbed if isinstance(event.event, StateChanged)]
    assert states.count(RunState.INTERRUPTED) == 2
    assert RunState.PAUSED in states
    assert trainer.terminate() == 0


def pull_and_release(world: World, client: TrainerClient, run: Run) -> None:
    """Pull the cord, see the run stand still, release it."""
    with CordClient(world.labeling.target, token=TOKENS["admin"]) as cord:
        cord.pull(actor="ada", reason="to see whether it stops")
        for event in client.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S):
            if isinstance(event.event, StateChanged) and "ada" in event.event.message:
                break
        cord.release(actor="bob", reason="it did")
