"""Who may call which RPC, where the service asks for tokens: see ``andon.rpc.roles``."""

from __future__ import annotations

from collections.abc import Mapping

from andon.api.canary.v1 import canary_service_pb2 as canary_pb2
from andon.rpc.roles import RESEARCHER, SERVICE

_CONTROL = frozenset({RESEARCHER})
_LOOK = frozenset({RESEARCHER, SERVICE})

ROLES_BY_METHOD: Mapping[str, frozenset[str]] = {
    f"/{canary_pb2.DESCRIPTOR.services_by_name['CanaryService'].full_name}/{method}": roles
    for method, roles in {
        "StartRollout": _CONTROL,
        "PromoteRollout": _CONTROL,
        "AbortRollout": _CONTROL,
        "GetRollout": _LOOK,
        "WatchRollout": _LOOK,
        "ListDecisions": _LOOK,
    }.items()
}
