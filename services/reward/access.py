"""Who may call which RPC, where the service asks for tokens: see ``andon.rpc.roles``."""

from __future__ import annotations

from collections.abc import Mapping

from andon.api.reward.v1 import reward_service_pb2 as reward_pb2
from andon.rpc.roles import EVERYBODY, RESEARCHER, TRAINER

_MODELS = frozenset({TRAINER, RESEARCHER})

ROLES_BY_METHOD: Mapping[str, frozenset[str]] = {
    f"/{reward_pb2.DESCRIPTOR.services_by_name['RewardService'].full_name}/{method}": roles
    for method, roles in {
        "Score": EVERYBODY,
        "LoadModel": _MODELS,
        "GetModelInfo": EVERYBODY,
    }.items()
}
