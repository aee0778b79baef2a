"""Who may call which RPC, where the service asks for tokens: see ``andon.rpc.roles``."""

from __future__ import annotations

from collections.abc import Mapping

from andon.api.trainer.v1 import trainer_service_pb2 as trainer_pb2
from andon.rpc.roles import RESEARCHER, SERVICE

_CONTROL = frozenset({RESEARCHER})
_LOOK = frozenset({RESEARCHER, SERVICE})

ROLES_BY_METHOD: Mapping[str, frozenset[str]] = {
    f"/{trainer_pb2.DESCRIPTOR.services_by_name['TrainerService'].full_name}/{method}": roles
    for method, roles in {
        "StartRun": _CONTROL,
        "PauseRun": _CONTROL,
        "ResumeRun": _CONTROL,
        "StopRun": _CONTROL,
        "WatchRun": _LOOK,
        "GetRun": _LOOK,
        "ListRuns": _LOOK,
    }.items()
}
