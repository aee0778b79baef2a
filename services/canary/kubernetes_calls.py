"""How one request to the Kubernetes API is made: as plain JSON, with a time-out, and its failures as ours.

``kubernetes_platform``, ``kubernetes_watch`` and ``lease`` call it. The official client gives credentials
(of the pod or of a kubeconfig, renewed as their files change), TLS and connections; objects stay the mappings
that the server sent, because a typed model of one Kubernetes release drops or refuses the fields of another.

One call is one request: what may be repeated is decided by those who know what the request does. All writes
of this package are conditional on the version that was read, so repeating one whose answer was lost ends in a
conflict, never in a second effect.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import urllib3
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

from andon.errors import InvalidArgumentError
from services.canary.cluster_errors import (
    ClusterConflictError,
    ClusterMissingError,
    ClusterRefusedError,
    ClusterUnavailableError,
)

CONNECT_TIMEOUT_S = 3.0
USER_AGENT = "andon-canary"
_MERGE = "application/merge-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"

# An object of the API as JSON: whatever fields its kind has.
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object and the path of its API."""

    api: str  # "api/v1" or "apis/<group>/<version>"
    plural: str


DEPLOYMENTS = Resource("apis/apps/v1", "deployments")
PODS = Resource("api/v1", "pods")
CONFIG_MAPS = Resource("api/v1", "configmaps")
EVENTS = Resource("api/v1", "events")
LEASES = Resource("apis/coordination.k8s.io/v1", "leases")
GRPC_ROUTES = Resource("apis/gateway.networking.k8s.io/v1", "grpcroutes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """Objects, and the version of the collection from which a watch may go on."""

    items: tuple[Object, ...]
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """One line of a watch."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Object

    @property
    def version(self) -> str:
        """From here a new watch may go on."""
        return str(self.object["metadata"]["resourceVersion"])


def connect(*, kubeconfig: Path | None, context: str | None = None) -> kubernetes_client.ApiClient:
    """A client with the credentials of a kubeconfig, or of the pod's service account when it is None.

    Raises InvalidArgumentError KUBERNETES_CREDENTIALS when there are none.
    """
    configuration = kubernetes_client.Configuration()
    try:
        if kubeconfig is None:
            kubernetes_config.load_incluster_config(  # type: ignore[no-untyped-call]
                client_configuration=configuration
            )
        else:
            kubernetes_config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=str(kubeconfig),
                context=context,
                client_configuration=configuration,
                persist_config=False,
            )
    except kubernetes_config.ConfigException as error:
        where = "the pod's service account" if kubeconfig is None else str(kubeconfig)
        raise InvalidArgumentError(
            f"no credentials for Kubernetes from {where}: {error}", reason="KUBERNETES_CREDENTIALS"
        ) from error
    configuration.retries = False  # urllib3 would repeat requests by itself and hide for how long
    made = kubernetes_client.ApiClient(configuration=configuration)
    made.user_agent = USER_AGENT
    return made


class KubernetesCalls:
    """Requests about the objects of one namespace. Methods block; any thread may call them."""

    def __init__(
        self, client: kubernetes_client.ApiClient, *, namespace: str, timeout_s: float = 10.0
    ) -> None:
        self.namespace = namespace
        self._client = client
        self._timeout_s = timeout_s

    def get(self, resource: Resource, name: str) -> Object:
        """One object. Raises ClusterMissingError when there is none."""
        return self._json("GET", self._path(resource, name))

    def list(self, resource: Resource, *, labels: Mapping[str, str]) -> Listed:
        """The namespace's objects with these labels."""
        answer = self._json("GET", self._path(resource), query={"labelSelector": _selector(labels)})
        return Listed(items=tuple(answer["items"]), version=str(answer["metadata"]["resourceVersion"]))

    def create(self, resource: Resource, new: Object) -> Object:
        """Raises ClusterConflictError when the name is taken."""
        return self._json("POST", self._path(resource), body=new, content_type="application/json")

    def patch(self, resource: Resource, name: str, patch: Object, *, strategic: bool = False) -> Object:
        """Change one object, if it still is of ``metadata.resourceVersion``.

        A merge patch replaces lists as wholes; a strategic one, which only built-in kinds take, merges
        containers and variables by name. Raises ClusterConflictError when the object has changed.
        """
        _require_version(patch)
        content_type = _STRATEGIC if strategic else _MERGE
        return self._json("PATCH", self._path(resource, name), body=patch, content_type=content_type)

    def replace(self, resource: Resource, name: str, new: Object) -> Object:
        """Write a whole object, if it still is of its ``metadata.resourceVersion``.

        Raises ClusterConflictError when it has changed.
        """
        _require_version(new)
        return self._json("PUT", self._path(resource, name), body=new, content_type="application/json")

    def watch(
        self, resource: Resource, *, labels: Mapping[str, str], since: str, timeout_s: float, silence_s: float
    ) -> Iterator[WatchEvent]:
        """What changes after ``since``, until the server ends it after ``timeout_s``.

        ``silence_s`` is how long nothing may arrive, bookmarks included, before the connection counts as
        dead. Raises ClusterConflictError WATCH_EXPIRED when the server no longer knows ``since``.
        """
        query = {
            "labelSelector": _selector(labels),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": since,
            "timeoutSeconds": str(max(1, round(timeout_s))),
        }
        with self._request("GET", self._path(resource), query=query, read_timeout_s=silence_s) as response:
            for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _error_of(int(event["object"].get("code", 500)), event["object"], None)
                yield WatchEvent(type=event["type"], object=event["object"])

    # --- one request ---------------------------------------------------------------------------------------

    def _path(self, resource: Resource, name: str = "") -> str:
        path = f"/{resource.api}/namespaces/{self.namespace}/{resource.plural}"
        return f"{path}/{name}" if name else path

    def _json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str | None = None,
    ) -> Object:
        with self._request(method, path, query=query, body=body, content_type=content_type) as response:
            answer: Object = json.loads(response.read())
        return answer

    @contextmanager
    def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str | None = None,
        read_timeout_s: float | None = None,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        headers = {"Accept": "application/json"}
        if content_type is not None:
            headers["Content-Type"] = content_type
        request = self._client.param_serialize(
            method=method,
            resource_path=path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        timeouts = (min(CONNECT_TIMEOUT_S, self._timeout_s), read_timeout_s or self._timeout_s)
        what = f"{method} {path}"
        try:
            response: urllib3.BaseHTTPResponse = self._client.call_api(
                *request, _request_timeout=timeouts
            ).response
            try:
                if not 200 <= response.status <= 299:
                    raise _error_of(response.status, _status_of(response.read()), response)
                yield response
            finally:
                response.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterUnavailableError(f"{what}: {type(error).__name__}: {error}") from error
        except kubernetes_client.ApiException as error:  # of TLS
            raise ClusterUnavailableError(f"{what}: {error.reason}") from error
        except json.JSONDecodeError as error:
            raise ClusterUnavailableError(f"{what}: an answer that is no JSON, perhaps cut") from error


def _require_version(body: Object) -> None:
    if not body["metadata"]["resourceVersion"]:
        raise ValueError("an unconditional write could undo somebody else's")


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Whole lines of a stream, each as soon as it has come."""
    rest = b""
    for chunk in response.stream(amt=None):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())
    if rest.strip():
        yield rest


def _status_of(body: bytes) -> Mapping[str, Any]:
    """The Status object of a failure; proxies in between answer with something else."""
    try:
        status = json.loads(body)
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}


def _error_of(
    code: int, status: Mapping[str, Any], response: urllib3.BaseHTTPResponse | None
) -> ClusterConflictError | ClusterMissingError | ClusterRefusedError | ClusterUnavailableError:
    """The answer as an error of ours. Messages are the server's and name objects, never credentials."""
    message = f"Kubernetes answers {code} {status.get('reason', '')}: {status.get('message', '')}".strip()
    if code == 404:
        return ClusterMissingError(message)
    if code == 409:
        taken = status.get("reason") == "AlreadyExists"
        return ClusterConflictError(message, reason="CLUSTER_NAME_TAKEN" if taken else "CLUSTER_CONFLICT")
    if code == 410:
        return ClusterConflictError(message, reason="WATCH_EXPIRED")
    if code == 429 or code >= 500:
        return ClusterUnavailableError(message, retry_after_s=_retry_after_s(status, response))
    return ClusterRefusedError(message, code=code)


def _retry_after_s(status: Mapping[str, Any], response: urllib3.BaseHTTPResponse | None) -> float:
    """How long the server asks to be left alone; 0 when it does not say."""
    told = response.headers.get("Retry-After", "") if response is not None else ""
    if told.isdecimal():
        return float(told)
    details = status.get("details")
    seconds = details.get("retryAfterSeconds", 0) if isinstance(details, dict) else 0
    return float(seconds) if isinstance(seconds, int) else 0.0
