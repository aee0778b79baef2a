"""All services look into one model store, and pods whose store is a bucket may reach its server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from andon.deploy.environment import Variable, environment_of, service_of, settings_of
from andon.deploy.findings import Finding
from andon.deploy.network import may_leave
from andon.deploy.objects import Pods
from andon.deploy.rules import Scene

_DNS_PORT = 53
_DEFAULT_PORTS = {"https": 443, "http": 80}


def store_findings(scene: Scene) -> Iterator[Finding]:
    """Versions that one service publishes and another would not find."""
    stores: dict[str, Pods] = {}
    for pods in scene.cluster.pods:
        for container in pods.containers:
            service = service_of(container)
            variables = environment_of(scene, container)
            setting = settings_of(service, variables).get("store") if service is not None else None
            if setting is None or setting.value is None:
                continue
            if stores and setting.value not in stores:
                place, other = next(iter(stores.items()))
                message = f"its model store is {setting.value}, and that of {other.where} is {place}"
                yield Finding(rule="store", where=pods.where, message=message)
            stores.setdefault(setting.value, pods)
            if setting.value.startswith("s3://"):
                yield from _of_bucket(scene, pods, variables)


def _of_bucket(scene: Scene, pods: Pods, variables: Mapping[str, Variable]) -> Iterator[Finding]:
    endpoint = variables.get("AWS_ENDPOINT_URL")
    url = urlsplit("https://s3" if endpoint is None or endpoint.value is None else endpoint.value)
    try:
        port = url.port or _DEFAULT_PORTS.get(url.scheme)
    except ValueError:
        port = None
    if port is None or not url.hostname:
        message = f"AWS_ENDPOINT_URL: {url.geturl()!r} is not http:// or https:// with a host"
        yield Finding(rule="store-endpoint", where=pods.where, message=message)
        return
    if url.scheme == "http" and "AWS_ALLOW_HTTP" not in variables:
        message = f"AWS_ENDPOINT_URL: {url.geturl()} is not encrypted, and AWS_ALLOW_HTTP is not set"
        yield Finding(rule="store-endpoint", where=pods.where, message=message)
    for needed, what in (
        (port, "the server of its model store"),
        (_DNS_PORT, "whoever knows its address"),
    ):
        if not may_leave(scene.cluster, pods, needed):
            message = f"no network policy lets it call {what} (TCP {needed})"
            yield Finding(rule="store-egress", where=pods.where, message=message)
