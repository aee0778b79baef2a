"""The policy of every channel, as gRPC reads it."""

import json

from andon.client.channel import ChannelOptions, service_config


def test_only_unavailable_is_tried_again_and_at_most_four_times() -> None:
    config = json.loads(service_config("a.B", ChannelOptions()))
    (method,) = config["methodConfig"]
    assert method["name"] == [{}]  # every method
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert method["retryPolicy"]["maxAttempts"] == 4


def test_calls_go_round_robin_over_healthy_replicas() -> None:
    config = json.loads(service_config("a.B", ChannelOptions()))
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    assert config["healthCheckConfig"] == {"serviceName": "a.B"}
