"""Decides whose services a demo uses: its own, started for it and stopped after it, or some that run already.

``DemoFlow`` sees only ``DemoServices``. Own services are processes of a ``Supervisor``. Running ones, of a
cluster or of an ``andon up``, are found as every command finds them; nobody here starts them again when they
die, so the flow asks until whoever runs them has. A service that comes back without its model is given it by
whoever asks next: the trainer, or ``measurements``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from andon.cli.endpoints import SERVICES, find_target
from andon.cli.supervisor import Supervisor
from andon.cli.tokens import find_token
from andon.client.health import Health, check_health
from andon.errors import UnavailableError

PROBE_TIMEOUT_S = 5.0
PROBE_INTERVAL_S = 1.0


class DemoServices(Protocol):
    """The five services of one demo."""

    @property
    def targets(self) -> Mapping[str, str]:
        """Address by service."""
        ...

    @property
    def labeling_token(self) -> str | None:
        """With which token the labeling service is called; None: the one that the environment names."""
        ...

    @property
    def model_store(self) -> str:
        """Where the models are, for people."""
        ...

    @property
    def restarts(self) -> Mapping[str, int]:
        """How often each service had to be started again, as far as that is known here."""
        ...

    @property
    def trainer_log(self) -> str:
        """Where to read what the trainer logged, for people."""
        ...

    def start(self) -> None:
        """Returns when all serve."""
        ...

    def stop(self) -> None:
        """Leaves nothing running that ``start`` began."""
        ...

    def keep_model(self, service: str, model: str) -> None:
        """Has a service load a model whenever it is started again, where that is decided here."""
        ...


class OwnServices:
    """Services that live and die with the demo."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor

    @property
    def targets(self) -> Mapping[str, str]:
        """Address by service."""
        return self.supervisor.targets

    @property
    def labeling_token(self) -> str | None:
        """That of the home's admin."""
        return self.supervisor.tokens.admin

    @property
    def model_store(self) -> str:
        """In the demo's home, unless another was asked for."""
        return self.supervisor.store

    @property
    def restarts(self) -> Mapping[str, int]:
        """By the supervisor's count."""
        return {service: self.supervisor.restart_count(service) for service in self.targets}

    @property
    def trainer_log(self) -> str:
        """A file in the demo's home."""
        return str(self.supervisor.log_path("trainer"))

    def start(self) -> None:
        """Starts them; raises what ``Supervisor.start`` raises."""
        self.supervisor.start()

    def stop(self) -> None:
        """Lets them drain."""
        self.supervisor.stop()

    def keep_model(self, service: str, model: str) -> None:
        """By a flag of the next start."""
        self.supervisor.set_argument(service, "model", model)


class RunningServices:
    """Services that somebody else runs and that go on after the demo."""

    restarts: Mapping[str, int] = {}
    """Who runs the services knows."""

    def __init__(self, home: Path | None, *, patience_s: float) -> None:
        """Finds them by ANDON_<SERVICE>_TARGET or in the home of an ``andon up``."""
        self.targets = {service: find_target(service, home=home) for service in SERVICES}
        self.labeling_token = find_token(self.targets["labeling"], home=home)
        self._patience_s = patience_s

    @property
    def model_store(self) -> str:
        """Known to the trainer alone."""
        return f"that of the trainer at {self.targets['trainer']}"

    @property
    def trainer_log(self) -> str:
        """Known to whoever runs it."""
        return f"that of the trainer at {self.targets['trainer']}"

    def start(self) -> None:
        """Waits until all serve. Raises UnavailableError SERVICE_NOT_SERVING when patience ends."""
        deadline_s = time.monotonic() + self._patience_s
        for service, target in self.targets.items():
            while (health := check_health(target, timeout_s=PROBE_TIMEOUT_S)) is not Health.SERVING:
                if time.monotonic() > deadline_s:
                    raise UnavailableError(
                        f"the {service} service at {target} is {health.value}",
                        reason="SERVICE_NOT_SERVING",
                        service=service,
                    )
                time.sleep(PROBE_INTERVAL_S)

    def stop(self) -> None:
        """They are not the demo's to stop."""

    def keep_model(self, service: str, model: str) -> None:
        """Decided by whoever starts them."""
