"""Decides which roles the tokens of policy, reward, reference, trainer and canary services may have.

Each of these services has a table of methods and roles in its ``access.py`` and hands it over as
``roles_by_method``; ``andon.rpc.server`` closes the service by it when the setting ``tokens`` names a file.
The labeling service has roles and tokens of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

TRAINER = "trainer"  # a training process: sends weights, loads models, samples, scores
SERVICE = "service"  # another service of Andon: samples, scores, log-probabilities
CLIENT = "client"  # a client program: samples and scores
RESEARCHER = "researcher"  # a person who trains: everything except sending weights

EVERYBODY = frozenset({TRAINER, SERVICE, CLIENT, RESEARCHER})


@runtime_checkable
class TokenGuardedService(Protocol):
    """A service that can be closed by a file of tokens."""

    @property
    def roles_by_method(self) -> Mapping[str, Collection[str]]:
        """By "/package.Service/Method"; a method that is absent is refused to everybody."""
        ...
