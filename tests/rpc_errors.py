"""What a failed call says of its reason."""

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


def reason_of(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """The one detail of an error that a service has given."""
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    return info
