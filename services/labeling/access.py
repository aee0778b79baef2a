"""Who may call which RPC.

The site's pages declare their roles beside themselves; here stand those of the RPCs. A method that is not in
the table is refused to everybody. In whose name a call acts is decided in ``callers``.
"""

from __future__ import annotations

from collections.abc import Mapping

from andon.api.labeling.v1 import access_service_pb2 as access_pb2
from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from services.labeling.accounts import Role

_EVERYBODY = frozenset(Role)
_DATA = frozenset({Role.RESEARCHER, Role.ADMIN, Role.SERVICE})
_RESEARCHERS = frozenset({Role.RESEARCHER, Role.ADMIN})
_ADMINS = frozenset({Role.ADMIN})

_LABELING: Mapping[str, frozenset[Role]] = {
    "CreateProject": _DATA,
    "ListProjects": _DATA,
    "SubmitTasks": _DATA,
    "LeaseTasks": _EVERYBODY,
    "SubmitAnswers": _EVERYBODY,
    "SkipTasks": _EVERYBODY,
    "ExportComparisons": _DATA,
    "ImportComparisons": _DATA,
    "GetProgress": _DATA,
    "GetAgreement": _DATA,
}
_CORD: Mapping[str, frozenset[Role]] = {
    "PullCord": _EVERYBODY,
    "ReleaseCord": _RESEARCHERS,
    "WatchCord": _EVERYBODY,
    "GetCord": _EVERYBODY,
    "ListCordEvents": _EVERYBODY,
}
_ACCESS: Mapping[str, frozenset[Role]] = {
    "CreateInvitation": _RESEARCHERS,  # a researcher only labelers, see accounts.may_invite
    "CreateToken": _ADMINS,
    "RevokeTokens": _ADMINS,
    "ListUsers": _RESEARCHERS,
    "UpdateUser": _ADMINS,
}

ROLES_BY_METHOD: Mapping[str, frozenset[Role]] = {
    f"/{file.DESCRIPTOR.services_by_name[service].full_name}/{method}": roles
    for file, service, table in (
        (labeling_pb2, "LabelingService", _LABELING),
        (cord_pb2, "CordService", _CORD),
        (access_pb2, "AccessService", _ACCESS),
    )
    for method, roles in table.items()
}
