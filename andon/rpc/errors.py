"""Decides how an error of ours travels as a gRPC status, and how it comes back out of one.

The interceptor calls ``error_to_status``, clients call ``error_from_rpc``. The status carries one
``google.rpc.ErrorInfo`` with domain "andon", the reason and the metadata, and ``google.rpc.RetryInfo`` where
the error says when to repeat. Texts are cut to fit into gRPC's 8
KiB of trailing metadata, beyond which a peer would see another error than ours.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from andon import errors
from andon.errors import AndonError
from andon.rpc.limits import RETRY_AFTER

DOMAIN = "andon"
MAX_MESSAGE_CHARACTERS = 500
MAX_VALUE_CHARACTERS = 120
MAX_METADATA_ENTRIES = 12

_CLASS_OF_CODE: dict[str, type[AndonError]] = {
    kind.code: kind
    for kind in (
        errors.InvalidArgumentError,
        errors.NotFoundError,
        errors.AlreadyExistsError,
        errors.UnauthenticatedError,
        errors.PermissionDeniedError,
        errors.FailedPreconditionError,
        errors.ResourceExhaustedError,
        errors.UnavailableError,
        errors.DeadlineExceededError,
        errors.DataLossError,
        errors.InternalError,
    )
}

# Codes that no class of ours has: gRPC or a proxy made them. Each goes to the class that asks the same of the
# caller.
_CLASS_OF_FOREIGN_CODE: dict[str, type[AndonError]] = {
    "CANCELLED": errors.UnavailableError,
    "ABORTED": errors.UnavailableError,
    "OUT_OF_RANGE": errors.InvalidArgumentError,
    "UNIMPLEMENTED": errors.FailedPreconditionError,
    "UNKNOWN": errors.InternalError,
}


def error_to_status(error: AndonError) -> status_pb2.Status:
    """The status that tells a caller of ``error``."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key in list(error.metadata)[:MAX_METADATA_ENTRIES]:
        info.metadata[key] = _cut(error.metadata[key], MAX_VALUE_CHARACTERS)
    status = status_pb2.Status(
        code=grpc.StatusCode[error.code].value[0], message=_cut(error.message, MAX_MESSAGE_CHARACTERS)
    )
    status.details.add().Pack(info)
    if RETRY_AFTER in error.metadata:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(float(error.metadata[RETRY_AFTER]) * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def error_from_rpc(error: grpc.RpcError) -> AndonError:
    """The error that a call raised, as one of our classes. Its reason is the code's name when the peer
    gave none.
    """
    # Errors of blocking and of asyncio calls share these methods, but no type.
    call: Any = error
    if not isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):
        return errors.UnavailableError(str(error))
    code: str = call.code().name
    kind = _CLASS_OF_CODE.get(code) or _CLASS_OF_FOREIGN_CODE.get(code, errors.InternalError)
    message = call.details() or code
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # the peer's detail contradicts its code or text: trust the code alone
        status = None
    if status is not None:
        info = error_details_pb2.ErrorInfo()
        for detail in status.details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) and detail.Unpack(info):
                restored = kind(message, reason=info.reason)
                restored.metadata = dict(info.metadata)
                return restored
    return kind(message, reason=code)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
