"""Errors over the wire: codes by the canonical table of gRPC, reasons and metadata kept."""

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2

from andon import errors
from andon.rpc.errors import error_from_rpc, error_to_status

ALL_CLASSES = errors.AndonError.__subclasses__()


@pytest.mark.parametrize("kind", ALL_CLASSES, ids=lambda kind: kind.__name__)
def test_each_class_takes_the_number_of_its_canonical_code(kind):
    status = error_to_status(kind("words", reason="SOME_REASON", field="x", count=3))
    assert status.code == code_pb2.Code.Value(kind.code)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason, dict(info.metadata)) == (
        "andon",
        "SOME_REASON",
        {"field": "x", "count": "3"},
    )


def test_texts_are_cut_to_what_trailing_metadata_holds():
    error = errors.NotFoundError("m" * 10_000, **{f"key{index}": "v" * 10_000 for index in range(50)})
    assert len(error_to_status(error).SerializeToString()) < 4096


class BareCall(grpc.RpcError, grpc.Call):
    """An error as gRPC itself makes it: a code, a text, no details."""

    def __init__(self, code: grpc.StatusCode, trailing=()) -> None:
        self._code = code
        self._trailing = trailing

    def code(self):
        return self._code

    def details(self):
        return "made by the transport"

    def trailing_metadata(self):
        return self._trailing

    def initial_metadata(self):
        return ()

    def add_callback(self, callback):
        return False

    def cancel(self):
        return False

    def is_active(self):
        return False

    def time_remaining(self):
        return None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceededError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhaustedError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.FailedPreconditionError),
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
        (grpc.StatusCode.CANCELLED, errors.UnavailableError),
        (grpc.StatusCode.UNAUTHENTICATED, errors.UnauthenticatedError),
    ],
)
def test_an_error_of_the_transport_becomes_the_class_that_asks_the_same_of_the_caller(code, kind):
    restored = error_from_rpc(BareCall(code))
    assert type(restored) is kind
    assert restored.reason == code.name
    assert restored.message == "made by the transport"


def test_details_that_contradict_the_status_are_not_believed():
    lie = error_to_status(errors.NotFoundError("other words")).SerializeToString()
    restored = error_from_rpc(BareCall(grpc.StatusCode.UNAVAILABLE, [("grpc-status-details-bin", lie)]))
    assert type(restored) is errors.UnavailableError
    assert restored.reason == "UNAVAILABLE"
