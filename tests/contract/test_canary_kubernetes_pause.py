"""A controller whose process stands still in the middle of whatever it does, and then goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.canary_cluster import fill_store
from tests.cord import wait_until
from tests.kubernetes_api import FakeKubernetes
from tests.kubernetes_workloads import ROUTE, Workloads, role_rules

ROOT = Path(__file__).parents[2]

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def api() -> Iterator[FakeKubernetes]:
    with FakeKubernetes(rules=role_rules()) as running:
        yield running


@pytest.fixture
def start(api: FakeKubernetes, tmp_path: Path) -> Iterator[Start]:
    """``start("a")`` starts a controller that leads when nobody else does."""
    Workloads(api)
    fill_store(tmp_path / "store")
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    with ExitStack() as processes:

        def begin(name: str) -> subprocess.Popen[str]:
            process = processes.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.canary_holder", kubeconfig, tmp_path / "store", name],
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                )
            )
            processes.callback(process.kill)
            return process

        yield begin


def _says(process: subprocess.Popen[str]) -> str:
    """The next line that it prints which is a word of its own."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() in ("leading", "refused"):
            return line.strip()
    return "nothing more"


def _route_callers(api: FakeKubernetes) -> list[str]:
    """Who changed the route, in order."""
    done = [call for call, code in list(api.answers) if code == 200 and call.verb == "patch"]
    return [call.caller for call in done if call.plural == "grpcroutes" and call.name == ROUTE]


def test_a_process_that_stood_still_changes_nothing_any_more(api: FakeKubernetes, start: Start) -> None:
    first = start("first")
    assert _says(first) == "leading"
    wait_until(lambda: _route_callers(api).count("first") > 1)
    second = start("second")
    os.kill(first.pid, signal.SIGSTOP)
    assert _says(second) == "leading"  # after the duration of the lease
    os.kill(first.pid, signal.SIGCONT)
    assert _says(first) == "refused"
    first.wait(30)

    callers = _route_callers(api)
    change = callers.index("second")
    assert set(callers[:change]) == {"first"}
    assert set(callers[change:]) == {"second"}
