"""The whole loop over real services, small: its report, kills of every service, Ctrl-C and going on."""

import json
import os
import signal
import subprocess
import sys
import threading
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from andon.cli.demo_flow import DemoFlow, DemoRequest
from andon.cli.demo_report import measure
from andon.cli.demo_state import open_state
from andon.cli.endpoints import SERVICES, read_endpoints
from andon.cli.recipes import Recipe, packaged_recipe
from andon.client.labeling import LabelingClient
from andon.client.trainer import Progress, TrainerClient
from andon.modeling.store import ModelStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def small_recipe(*, updates: int) -> Recipe:
    """More updates, too small to lead to what a guard would hold where the reward model knows nothing."""
    recipe = packaged_recipe("small")
    return recipe.model_copy(update={"ppo": {**recipe.ppo, "updates": updates, "learning_rate": 1e-6}})


def test_a_small_demo_leaves_a_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "andon.cli.main", "demo", "--small", "--seed", "1", "--json"]
    result = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    report = json.loads((tmp_path / "report.json").read_text())
    assert printed["win_rates"] == report["win_rates"]
    rate = report["win_rates"][0]
    assert set(rate) == {"policy", "against", "judge", "rate", "low", "high", "n"}
    assert (rate["policy"], rate["against"], rate["judge"], rate["n"]) == ("ppo", "reference", "gold", 32)
    assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
    assert set(report["reward_model"]["edit_test"]) == {"drop", "swap", "repeat", "ramble"}
    assert {"accuracy", "labeler_agreement", "longer_wins_accuracy"} <= set(report["reward_model"])
    assert {"corpus", "services", "sft", "samples", "labels", "reward_model", "ppo", "total"} <= set(
        report["seconds"]
    )
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    store = ModelStore(Path(report["model_store"]))
    assert {stored.version.family for stored in store.list()} == {"sft", "reward", "policy"}
    for stored in store.list():
        store.verify(stored)
    # From the policy back to the labels.
    roles = {parent.role for parent in store.lineage(report["models"]["policy"]).parents}
    assert {"reward", "reference"} <= roles
    assert read_endpoints(tmp_path / "home") == {}


def test_every_service_may_be_killed_in_the_middle_of_ppo(tmp_path: Path) -> None:
    """One run, five kills, the trainer's among them; nothing that was acknowledged is lost."""
    updates = 14
    kills = {2: "reward", 4: "reference", 6: "policy", 8: "labeling", 10: "trainer"}
    request = DemoRequest(out=tmp_path, seed=2, data=None, recipe=small_recipe(updates=updates))
    state, _ = open_state(tmp_path, {})
    failures: list[BaseException] = []
    with DemoFlow(request, state, Console(file=StringIO())) as flow:

        def kill_on_the_way() -> None:
            try:
                with TrainerClient(flow.supervisor.targets["trainer"]) as trainer:
                    run_id = None
                    while run_id is None and not ended.wait(0.2):
                        run_id = running_ppo(trainer)
                    left = dict(kills)
                    for event in trainer.watch_run(run_id or ""):
                        if isinstance(event.event, Progress) and event.event.step in left:
                            victim = flow.supervisor.process_id(left.pop(event.event.step))
                            assert victim is not None
                            os.kill(victim, signal.SIGKILL)
                    assert not left
            except BaseException as error:  # noqa: BLE001 - told by the test's own thread
                failures.append(error)

        ended = threading.Event()
        killer = threading.Thread(target=kill_on_the_way)
        started = threading.Thread(target=lambda: wait_for_services(flow, killer, ended))
        started.start()
        try:
            outcome = flow.run()
        finally:
            ended.set()
            started.join()
        killer.join()
        assert failures == []
        assert {service: flow.supervisor.restart_count(service) for service in SERVICES} == dict.fromkeys(
            SERVICES, 1
        )
        (ppo,) = (curve for curve in outcome.curves if curve.stage == "ppo")
        assert list(ppo.steps) == list(range(1, updates + 1))
        with LabelingClient(
            flow.supervisor.targets["labeling"], token=flow.supervisor.tokens.admin
        ) as labeling:
            progress = labeling.progress(wait_for_ready=True)
        assert progress.answer_count == progress.slot_count > 0
        report, page = measure(flow, outcome)
    assert page.is_file()
    assert report.models["policy"] == str(outcome.models.policy)
    store = ModelStore(tmp_path / "home" / "store")
    for stored in store.list():
        store.verify(stored)


def test_a_demo_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    """Ctrl-C in the middle of PPO, then the same command: no phase and no update is done twice."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(small_recipe(updates=12).model_dump(mode="json")))
    command = [sys.executable, "-m", "andon.cli.main", "demo", "--recipe", str(recipe), "--seed", "3"]
    command += ["--out", str(tmp_path / "out"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        for line in first.stderr:
            if line.startswith("ppo") and "running" in line:
                first.send_signal(signal.SIGINT)
                break
        _, rest = first.communicate(timeout=300)
    assert first.returncode == 130, rest
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "going on with" in second.stderr
    store = ModelStore(tmp_path / "out" / "home" / "store")
    assert [str(stored.version) for stored in store.list("sft")] == ["sft/1"]
    assert [str(stored.version) for stored in store.list("reward")] == ["reward/1"]
    assert [str(stored.version) for stored in store.list("policy")] == ["policy/12"]


def wait_for_services(flow: DemoFlow, killer: threading.Thread, ended: threading.Event) -> None:
    """Starts the killer once the services' addresses are known to answer."""
    while not ended.wait(0.2):
        if read_endpoints(flow.supervisor.home):
            killer.start()
            return


def running_ppo(trainer: TrainerClient) -> str | None:
    for run in trainer.list():
        if run.stage == "ppo":
            return run.run_id
    return None
