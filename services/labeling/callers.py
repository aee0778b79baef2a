"""In whose name a call acts.

Labelers and researchers act as themselves. Andon's own services and admins may act for anybody: simulated
labelers, imports, a front end that knows its people.
"""

from __future__ import annotations

from andon.rpc.auth import Caller, current_caller
from services.labeling.accounts import Role
from services.labeling.errors import ActingForAnotherError

_ACT_FOR_ANYBODY = frozenset({Role.SERVICE, Role.ADMIN})


def caller() -> Caller:
    """The caller of the running call, which the interceptor has let in."""
    found = current_caller()
    if found is None:
        raise RuntimeError("this method runs without access control")
    return found


def acting_as(claimed_name: str, *, may_act_for_anybody: frozenset[Role] = _ACT_FOR_ANYBODY) -> str:
    """The name that the call acts under: the claimed one where that is allowed, the caller's own when empty.

    Raises ActingForAnotherError.
    """
    own = caller()
    if claimed_name in ("", own.name):
        return own.name
    if Role(own.role) not in may_act_for_anybody:
        raise ActingForAnotherError(claimed_name)
    return claimed_name
