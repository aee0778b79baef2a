"""Who may call which RPC, where the service asks for tokens: see ``andon.rpc.roles``."""

from __future__ import annotations

from collections.abc import Mapping

from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from andon.rpc.roles import EVERYBODY, RESEARCHER, TRAINER

_WEIGHTS = frozenset({TRAINER})  # nobody else changes what the samplers write with
_MODELS = frozenset({TRAINER, RESEARCHER})

ROLES_BY_METHOD: Mapping[str, frozenset[str]] = {
    f"/{policy_pb2.DESCRIPTOR.services_by_name['PolicyService'].full_name}/{method}": roles
    for method, roles in {
        "Sample": EVERYBODY,
        "UpdateWeights": _WEIGHTS,
        "LoadModel": _MODELS,
        "GetModelInfo": EVERYBODY,
    }.items()
}
