"""Decides how a client asks a service whether it serves, by the standard gRPC health service."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from andon.client.channel import connect
from andon.client.connection import TRACK_HEADER
from andon.errors import DeadlineExceededError, UnavailableError
from andon.rpc.errors import error_from_rpc


class Health(StrEnum):
    """What a service says about itself, or what its silence says."""

    SERVING = "serving"
    NOT_SERVING = "not serving"  # starting, or draining
    UNREACHABLE = "unreachable"


def check_health(target: str, *, timeout_s: float, track: str | None = None) -> Health:
    """The health of the process behind ``target``, of that side of a canary split if ``track`` names one. A
    refusal is raised as Andon's error.
    """
    metadata = None if track is None else [(TRACK_HEADER, track)]
    with connect(target) as channel:
        # The generated stub is untyped.
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            translated = error_from_rpc(error)
            if isinstance(translated, (UnavailableError, DeadlineExceededError)):
                return Health.UNREACHABLE
            raise translated from error
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return Health.SERVING if serving else Health.NOT_SERVING
