"""``andon status``: how every service is, which model it serves, and what the trainer is doing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import typer

from andon.cli.endpoints import SERVICES, find_target, home_folder
from andon.cli.exit_codes import EXIT_UNREACHABLE
from andon.cli.options import HomeOption
from andon.cli.output import JsonFlag, print_json, print_table, results
from andon.cli.tokens import find_token
from andon.client.cord import Cord, CordClient
from andon.client.health import Health, check_health
from andon.client.policy import PolicyClient
from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.client.trainer import Run, TrainerClient
from andon.errors import AndonError
from andon.modeling.versions import ModelVersion

PROBE_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """What one service says of itself."""

    service: str
    target: str
    health: Health
    model: ModelVersion | None
    note: str


def status(home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """Show the health of every service, the models in use, the current run and the cord."""
    statuses = [_service_status(service, home_folder(home)) for service in SERVICES]
    reachable = {entry.service: entry for entry in statuses if entry.health is not Health.UNREACHABLE}
    run = _current_run(reachable["trainer"].target) if "trainer" in reachable else None
    cord = _cord(reachable["labeling"].target, home) if "labeling" in reachable else None
    if as_json:
        print_json({"services": statuses, "run": run, "cord": cord})
    else:
        print_table(
            None,
            ["service", "address", "health", "model", "note"],
            [
                (entry.service, entry.target, entry.health.value, entry.model or "", entry.note)
                for entry in statuses
            ],
        )
        if run is not None:
            steps = f"step {run.step}" + (f" of {run.total_steps}" if run.total_steps else "")
            results().print(
                f"run {run.run_id} ({run.stage}): {run.state.value}, {steps} {run.status_message}",
                soft_wrap=True,
            )
        if cord is not None and cord.pulled:
            results().print(f"[bold red]cord pulled[/] by {cord.actor}: {cord.reason}", soft_wrap=True)
    if len(reachable) < len(statuses):
        raise typer.Exit(EXIT_UNREACHABLE)


def _service_status(service: str, home: Path) -> ServiceStatus:
    target = find_target(service, home=home)
    health = check_health(target, timeout_s=PROBE_TIMEOUT_S)
    model, note = None, ""
    if health is not Health.UNREACHABLE:
        try:
            model = _model_in_use(service, target)
        except AndonError as error:
            note = error.reason
    return ServiceStatus(service=service, target=target, health=health, model=model, note=note)


def _model_in_use(service: str, target: str) -> ModelVersion | None:
    if service == "policy":
        with PolicyClient(target) as policy:
            return policy.model_info(timeout_s=PROBE_TIMEOUT_S).model
    if service == "reference":
        with ReferenceClient(target) as reference:
            return reference.model_info(timeout_s=PROBE_TIMEOUT_S).model
    if service == "reward":
        with RewardClient(target) as reward:
            return reward.model_info(timeout_s=PROBE_TIMEOUT_S).info.model
    return None


def _current_run(target: str) -> Run | None:
    """The run that has not ended, or else the last one."""
    with TrainerClient(target) as client:
        recent = list(islice(client.list(page_size=20, timeout_s=PROBE_TIMEOUT_S), 20))
    return next((run for run in recent if not run.state.is_final), recent[0] if recent else None)


def _cord(target: str, home: Path | None) -> Cord:
    with CordClient(target, token=find_token(target, home=home)) as client:
        return client.get(timeout_s=PROBE_TIMEOUT_S)
