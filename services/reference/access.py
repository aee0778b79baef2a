"""Who may call which RPC, where the service asks for tokens: see ``andon.rpc.roles``."""

from __future__ import annotations

from collections.abc import Mapping

from andon.api.reference.v1 import reference_service_pb2 as reference_pb2
from andon.rpc.roles import EVERYBODY, RESEARCHER, SERVICE, TRAINER

_MODELS = frozenset({TRAINER, RESEARCHER})
_LOGPROBS = frozenset({TRAINER, SERVICE, RESEARCHER})

ROLES_BY_METHOD: Mapping[str, frozenset[str]] = {
    f"/{reference_pb2.DESCRIPTOR.services_by_name['ReferenceService'].full_name}/{method}": roles
    for method, roles in {
        "LogProbs": _LOGPROBS,
        "LoadModel": _MODELS,
        "GetModelInfo": EVERYBODY,
    }.items()
}
