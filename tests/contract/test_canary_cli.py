"""``andon canary`` as a process, against a real controller."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.canary_models import BETTER, STABLE
from tests.canary_world import CanaryWorld, canary_world

__all__ = ["canary_world"]


def test_the_command_line_starts_shows_and_aborts(canary_world: CanaryWorld, tmp_path: Path) -> None:
    canary_world.start_controller(probes_per_look=4)
    environment = {
        **os.environ,
        "ANDON_CANARY_TARGET": canary_world.controller.target,
        "ANDON_HOME": str(tmp_path / "home"),
    }

    def andon(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "andon.cli.main", "canary", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    nothing = andon("status")
    assert nothing.returncode == 1
    assert "NO_ROLLOUT" in nothing.stderr
    assert andon("start", BETTER, "--steps", "five").returncode == 2
    started = andon(
        "start", BETTER, "--steps=5,50", "--least=100", "--boundary=score=-0.1", "--without=latency", "--json"
    )
    assert started.returncode == 0, started.stderr
    rollout = json.loads(started.stdout)
    assert (rollout["candidate"], rollout["step_percents"]) == (BETTER, [5, 50])
    gates = {gate["name"]: gate["boundary"] for gate in rollout["gates"]}
    assert gates["score"] == -0.1
    assert "latency" not in gates
    shown = andon("status")
    assert shown.returncode == 0
    assert f"stable {STABLE}" in shown.stdout
    aborted = andon("abort", "reads badly", "--actor", "rita")
    assert aborted.returncode == 0, aborted.stderr
    followed = andon("status", "--follow")
    assert followed.returncode == 1  # not promoted
    assert "rita said so: reads badly" in followed.stdout
    assert json.loads(andon("status", "--json").stdout)["decisions"][0]["kind"] == "abort"
