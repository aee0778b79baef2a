"""What the canary controller's tests on a fake Kubernetes need beside it: a store, and controllers that die.

A controller is killed as SIGKILL does it, as far as the API can see: from some request on nothing of it
arrives any more, and it learns nothing about that request, which has been carried out.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubernetes.client import ApiClient

from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import WEIGHTS_NAME, ModelStore
from services.canary.kubernetes_calls import KubernetesCalls, connect
from tests.kubernetes_api import NAMESPACE, FakeKubernetes


class Killed(BaseException):
    """The process is gone. No ``except Exception`` may go on after it."""


def fill_store(root: Path, count: int = 3) -> ModelStore:
    """policy/1 ... policy/count, with weights that differ by their digests only."""
    store = ModelStore(root)
    for number in range(1, count + 1):

        def write(folder: Path, number: int = number) -> None:
            (folder / WEIGHTS_NAME).write_text(json.dumps({"weights_sha256": f"{number:064x}"}))

        store.publish("policy", write, manifest=ManifestDraft(kind="causal_lm"))
    store.set_alias("policy@stable", "policy/1")
    return store


class MortalClient:
    """The requests of one controller process, which ``dies_after`` so many, or never."""

    def __init__(
        self, api: FakeKubernetes, folder: Path, *, name: str = "controller", dies_after: int | None = None
    ) -> None:
        self.client: ApiClient = connect(kubeconfig=api.write_kubeconfig(folder / f"{name}.kubeconfig"))
        self.client.user_agent = name
        self.count = 0
        self.before: Callable[[], None] | None = None  # of each request
        self._dies_after = dies_after
        self._dead = False
        self._lock = threading.Lock()
        self._request: Callable[..., Any] = self.client.rest_client.request
        self.client.rest_client.request = self._mortal_request

    def calls(self, *, timeout_s: float = 10.0) -> KubernetesCalls:
        """For this process."""
        return KubernetesCalls(self.client, namespace=NAMESPACE, timeout_s=timeout_s)

    def kill(self) -> None:
        """From now on."""
        self._dead = True

    def _mortal_request(self, *arguments: Any, **keywords: Any) -> Any:
        with self._lock:
            if self._dead:
                raise Killed
            self.count += 1
            last = self.count == self._dies_after
            self._dead = self._dead or last
        if self.before is not None:
            self.before()
        answer = self._request(*arguments, **keywords)
        if last:
            answer.response.read()
            raise Killed
        return answer
