"""How the controller's requests behave against an API that conflicts, fails, and forgets to answer."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from andon.errors import InvalidArgumentError
from services.canary.cluster_errors import (
    ClusterConflictError,
    ClusterMissingError,
    ClusterRefusedError,
    ClusterUnavailableError,
    NotLeaderError,
)
from services.canary.kubernetes_calls import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    GRPC_ROUTES,
    PODS,
    KubernetesCalls,
    Object,
    connect,
)
from services.canary.kubernetes_objects import TERM_ANNOTATION, deployment_patch, route_patch
from services.canary.kubernetes_record import empty_record
from services.canary.kubernetes_watch import ChangeWatch
from services.canary.kubernetes_writes import ClaimedObjects, Patience
from tests import kubernetes_objects as kinds
from tests.certificates import Authority, write_files
from tests.kubernetes_api import NAMESPACE, Call, FakeKubernetes
from tests.kubernetes_workloads import CANARY, ROUTE, STABLE, Workloads, role_rules

RECORD = "andon-rollout"
OBJECTS = (
    (CONFIG_MAPS, RECORD),
    (GRPC_ROUTES, ROUTE),
    (DEPLOYMENTS, STABLE),
    (DEPLOYMENTS, CANARY),
)


class Holder:
    """A lease as a variable: who has it, and what each controller believes."""

    def __init__(self) -> None:
        self.term = ""


class Believer:
    """A controller's view of the holder; ``deceived`` ones go on believing when they have lost it."""

    def __init__(self, holder: Holder, term: str, *, deceived: bool = False) -> None:
        self._holder, self._term, self._deceived = holder, term, deceived
        holder.term = term

    def term(self) -> str | None:
        return self._term if self._deceived or self._holder.term == self._term else None

    def confirm(self, term: str) -> None:
        if self._holder.term != term:
            raise NotLeaderError(holder=self._holder.term)


@pytest.fixture
def api() -> Iterator[FakeKubernetes]:
    with FakeKubernetes(rules=role_rules()) as running:
        yield running


@pytest.fixture
def workloads(api: FakeKubernetes) -> Workloads:
    return Workloads(api)


@pytest.fixture
def calls(api: FakeKubernetes, tmp_path: Path) -> KubernetesCalls:
    return KubernetesCalls(
        connect(kubeconfig=api.write_kubeconfig(tmp_path / "kubeconfig")), namespace=NAMESPACE, timeout_s=5
    )


@pytest.fixture
def claimed(calls: KubernetesCalls) -> Callable[..., ClaimedObjects]:
    def make(believer: Believer) -> ClaimedObjects:
        objects = ClaimedObjects(
            calls, believer, patience=Patience(total_s=5.0, first_pause_s=0.001, longest_pause_s=0.01)
        )
        assert objects.claim(OBJECTS, makes=empty_record(RECORD))
        return objects

    return make


def _ship(model: str) -> Callable[[Object], Object | None]:
    return lambda deployment: deployment_patch(deployment, model=model, replicas=1)


def _route(percent: int) -> Callable[[Object], Object | None]:
    return lambda route: route_patch(route, stable=STABLE, canary=CANARY, canary_percent=percent)


def test_a_claim_marks_every_object_once_and_changes_nothing_else(
    api: FakeKubernetes, workloads: Workloads, claimed: Callable[..., ClaimedObjects]
) -> None:
    before = {name: api.objects.get(kinds.DEPLOYMENTS, name) for name in (STABLE, CANARY)}
    objects = claimed(Believer(Holder(), "1/a"))
    for kind, name in (
        (kinds.CONFIG_MAPS, RECORD),
        (kinds.ROUTES, ROUTE),
        (kinds.DEPLOYMENTS, STABLE),
        (kinds.DEPLOYMENTS, CANARY),
    ):
        assert api.objects.get(kind, name)["metadata"]["annotations"][TERM_ANNOTATION] == "1/a"
    for name, old in before.items():
        new = api.objects.get(kinds.DEPLOYMENTS, name)
        assert new["spec"] == old["spec"]
        assert new["metadata"]["generation"] == old["metadata"]["generation"]  # so no pod is replaced
    count = len(api.calls)
    assert objects.claim(OBJECTS, makes=empty_record(RECORD))
    assert len(api.calls) == count


def test_changes_touch_only_what_a_rollout_owns(
    api: FakeKubernetes, workloads: Workloads, claimed: Callable[..., ClaimedObjects]
) -> None:
    objects = claimed(Believer(Holder(), "1/a"))
    deployment, route = api.objects.get(kinds.DEPLOYMENTS, CANARY), api.objects.get(kinds.ROUTES, ROUTE)
    objects.change(DEPLOYMENTS, CANARY, _ship("policy/2"))
    objects.change(GRPC_ROUTES, ROUTE, _route(5))

    deployment["spec"]["replicas"] = 1
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    next(one for one in variables if one["name"] == "ANDON_POLICY_MODEL")["value"] = "policy/2"
    assert api.objects.get(kinds.DEPLOYMENTS, CANARY)["spec"] == deployment["spec"]

    stable, canary = route["spec"]["rules"][1]["backendRefs"]
    stable["weight"], canary["weight"] = 95, 5
    assert api.objects.get(kinds.ROUTES, ROUTE)["spec"] == route["spec"]


def test_what_is_as_wanted_is_not_written(
    api: FakeKubernetes, workloads: Workloads, claimed: Callable[..., ClaimedObjects]
) -> None:
    objects = claimed(Believer(Holder(), "1/a"))
    for _ in range(2):
        objects.change(DEPLOYMENTS, CANARY, _ship("policy/2"))
        objects.change(GRPC_ROUTES, ROUTE, _route(5))
    assert [str(call) for call in api.calls[-6:]] == [
        f"get deployments/{CANARY}",
        f"patch deployments/{CANARY}",
        f"get grpcroutes/{ROUTE}",
        f"patch grpcroutes/{ROUTE}",
        f"get deployments/{CANARY}",
        f"get grpcroutes/{ROUTE}",
    ]


@pytest.mark.parametrize(
    "fault", ["other_writer", "throttled", "server_error", "unavailable", "reset_before", "reset_after"]
)
@pytest.mark.parametrize("verb", ["get", "patch"])
def test_a_change_comes_once_through_every_fault(
    api: FakeKubernetes,
    workloads: Workloads,
    claimed: Callable[..., ClaimedObjects],
    fault: str,
    verb: str,
) -> None:
    objects = claimed(Believer(Holder(), "1/a"))
    hit = api.inject(fault, verb=verb, plural="deployments", times=2)  # type: ignore[arg-type]
    objects.change(DEPLOYMENTS, CANARY, _ship("policy/2"))
    assert workloads.model(CANARY) == "policy/2"
    assert [one for one in workloads.rolled if one[0] == CANARY][1:] == [(CANARY, "policy/2", 1)]
    # A write whose answer was lost is read to be done; another writer before the read does no harm.
    harmless = {("reset_after", "patch"), ("other_writer", "get")}
    assert len(hit.hits) == (1 if (fault, verb) in harmless else 2)


def test_an_api_that_stays_away_ends_in_an_error_that_may_be_repeated(
    api: FakeKubernetes, workloads: Workloads, claimed: Callable[..., ClaimedObjects]
) -> None:
    objects = claimed(Believer(Holder(), "1/a"))
    away = api.inject("unavailable", plural="deployments", times=1_000_000)
    with pytest.raises(ClusterUnavailableError, match="503"):
        objects.change(DEPLOYMENTS, CANARY, _ship("policy/2"))
    assert len(away.hits) > 10
    assert workloads.model(CANARY) == "policy@canary"


def test_the_servers_wish_to_be_left_alone_is_respected(
    api: FakeKubernetes, workloads: Workloads, calls: KubernetesCalls
) -> None:
    waited_s: list[float] = []
    objects = ClaimedObjects(
        calls,
        Believer(Holder(), "1/a"),
        patience=Patience(total_s=20.0, first_pause_s=0.001),
        sleep=waited_s.append,
    )
    api.inject("throttled", plural="deployments", verb="get", seconds=7)
    objects.read(DEPLOYMENTS, STABLE)
    assert waited_s == [7.0]
    api.inject("throttled", plural="deployments", verb="get", seconds=60)
    with pytest.raises(ClusterUnavailableError):
        objects.read(DEPLOYMENTS, STABLE)
    assert waited_s == [7.0]  # longer than it has patience: the caller decides


def test_a_slow_answer_is_given_up_and_the_change_is_made_once(
    api: FakeKubernetes, workloads: Workloads, tmp_path: Path
) -> None:
    client = connect(kubeconfig=api.write_kubeconfig(tmp_path / "kubeconfig"))
    quick = KubernetesCalls(client, namespace=NAMESPACE, timeout_s=0.5)
    objects = ClaimedObjects(quick, Believer(Holder(), "1/a"), patience=Patience(first_pause_s=0.001))
    objects.claim(OBJECTS, makes=empty_record(RECORD))
    slow = api.inject("slow", verb="patch", plural="deployments", seconds=30)
    objects.change(DEPLOYMENTS, CANARY, _ship("policy/2"))
    assert len(slow.hits) == 1
    assert workloads.rolled.count((CANARY, "policy/2", 1)) == 1


# --- two controllers ---------------------------------------------------------------------------------------


def test_a_former_leader_that_still_believes_changes_nothing(
    api: FakeKubernetes, workloads: Workloads, claimed: Callable[..., ClaimedObjects]
) -> None:
    holder = Holder()
    old = claimed(Believer(holder, "1/old", deceived=True))
    new = claimed(Believer(holder, "2/new"))
    with pytest.raises(NotLeaderError, match="2/new"):
        old.change(GRPC_ROUTES, ROUTE, _route(50))
    assert workloads.weights() == (100, 0)
    new.change(GRPC_ROUTES, ROUTE, _route(5))
    assert workloads.weights() == (95, 5)


def test_a_write_under_way_while_another_takes_over_fails(
    api: FakeKubernetes, workloads: Workloads, claimed: Callable[..., ClaimedObjects]
) -> None:
    """The old leader has read and decided; its write waits in the network until the new one has begun."""
    holder = Holder()
    old = claimed(Believer(holder, "1/old", deceived=True))
    under_way, go_on = threading.Event(), threading.Event()

    def hold(call: Call) -> None:
        if str(call) == f"patch grpcroutes/{ROUTE}" and not under_way.is_set():
            under_way.set()
            assert go_on.wait(30)

    api.before = hold
    failures: list[Exception] = []

    def act() -> None:
        try:
            old.change(GRPC_ROUTES, ROUTE, _route(50))
        except NotLeaderError as error:
            failures.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    assert under_way.wait(30)
    claimed(Believer(holder, "2/new"))
    go_on.set()
    thread.join(30)
    assert len(failures) == 1
    assert workloads.weights() == (100, 0)


def test_a_claim_under_way_while_another_takes_over_fails(
    api: FakeKubernetes, workloads: Workloads, calls: KubernetesCalls, claimed: Callable[..., ClaimedObjects]
) -> None:
    """It has asked for the Lease and been told that it leads; then it stands still."""
    holder = Holder()
    old_view = Believer(holder, "1/old", deceived=True)
    old = ClaimedObjects(calls, old_view, patience=Patience(total_s=5.0, first_pause_s=0.001))
    under_way, go_on = threading.Event(), threading.Event()

    def hold(call: Call) -> None:
        if str(call) == f"patch grpcroutes/{ROUTE}" and not under_way.is_set():
            under_way.set()
            assert go_on.wait(30)

    api.before = hold
    failures: list[Exception] = []

    def act() -> None:
        try:
            old.claim(OBJECTS, makes=empty_record(RECORD))
        except NotLeaderError as error:
            failures.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    assert under_way.wait(30)
    claimed(Believer(holder, "2/new"))
    go_on.set()
    thread.join(30)
    assert len(failures) == 1
    annotations = api.objects.get(kinds.ROUTES, ROUTE)["metadata"]["annotations"]
    assert annotations[TERM_ANNOTATION] == "2/new"


def test_nothing_is_changed_in_a_term_that_was_not_claimed(
    api: FakeKubernetes, workloads: Workloads, calls: KubernetesCalls
) -> None:
    objects = ClaimedObjects(calls, Believer(Holder(), "1/a"), patience=Patience())
    with pytest.raises(NotLeaderError):
        objects.change(DEPLOYMENTS, CANARY, _ship("policy/2"))
    assert not any(call.writes for call in api.calls)


def test_an_object_made_anew_is_claimed_anew(
    api: FakeKubernetes, workloads: Workloads, claimed: Callable[..., ClaimedObjects]
) -> None:
    objects = claimed(Believer(Holder(), "1/a"))
    route = api.objects.get(kinds.ROUTES, ROUTE)
    api.objects.delete(kinds.ROUTES, ROUTE)
    with pytest.raises(ClusterMissingError):
        objects.change(GRPC_ROUTES, ROUTE, _route(5))
    api.objects.create(
        kinds.ROUTES, {"metadata": {"name": ROUTE}, "spec": route["spec"], "apiVersion": route["apiVersion"]}
    )
    objects.change(GRPC_ROUTES, ROUTE, _route(5))
    assert workloads.weights() == (95, 5)
    assert api.objects.get(kinds.ROUTES, ROUTE)["metadata"]["annotations"][TERM_ANNOTATION] == "1/a"


# --- what the Role does not allow --------------------------------------------------------------------------


def test_what_is_forbidden_is_said_at_once(
    api: FakeKubernetes, workloads: Workloads, claimed: Callable[..., ClaimedObjects], calls: KubernetesCalls
) -> None:
    objects = claimed(Believer(Holder(), "1/a"))
    count = len(api.calls)
    with pytest.raises(ClusterRefusedError, match="cannot get"):
        objects.read(DEPLOYMENTS, "andon-trainer")
    assert len(api.calls) == count + 1
    api.token = "another"
    with pytest.raises(ClusterRefusedError, match="401"):
        objects.read(DEPLOYMENTS, STABLE)


def test_a_field_that_the_server_does_not_know_is_refused(
    api: FakeKubernetes, workloads: Workloads, calls: KubernetesCalls
) -> None:
    """What makes the other tests worth something: the fake is strict."""
    version = api.objects.get(kinds.DEPLOYMENTS, CANARY)["metadata"]["resourceVersion"]
    with pytest.raises(ClusterRefusedError, match="422"):
        calls.patch(
            DEPLOYMENTS,
            CANARY,
            {"metadata": {"resourceVersion": version}, "spec": {"replica": 1}},
            strategic=True,
        )
    route = api.objects.get(kinds.ROUTES, ROUTE)["metadata"]["resourceVersion"]
    with pytest.raises(ClusterRefusedError, match="415"):
        calls.patch(GRPC_ROUTES, ROUTE, {"metadata": {"resourceVersion": route}}, strategic=True)


# --- watches -----------------------------------------------------------------------------------------------


class Changes:
    """Counts what a watch tells."""

    def __init__(self) -> None:
        self.count = 0
        self._told = threading.Condition()

    def __call__(self) -> None:
        with self._told:
            self.count += 1
            self._told.notify_all()

    def wait_beyond(self, count: int) -> None:
        with self._told:
            assert self._told.wait_for(lambda: self.count > count, 30)


@pytest.fixture
def changes(api: FakeKubernetes, workloads: Workloads, calls: KubernetesCalls) -> Iterator[Changes]:
    told = Changes()
    labels = {"app.kubernetes.io/component": "policy"}
    watch = ChangeWatch(calls, PODS, labels=labels, on_change=told, silence_s=1.0, first_pause_s=0.01)
    watch.start()
    api.wait_for_watches(1)
    yield told
    watch.stop()


def test_a_watch_tells_of_pods(api: FakeKubernetes, workloads: Workloads, changes: Changes) -> None:
    before = changes.count
    workloads.set_behaviour("policy/1", "crashing")
    changes.wait_beyond(before)


def test_a_lost_watch_is_begun_again_and_tells_of_what_it_may_have_missed(
    api: FakeKubernetes, workloads: Workloads, changes: Changes
) -> None:
    for _ in range(3):
        before = changes.count
        api.lose_watches()
        changes.wait_beyond(before)
        api.wait_for_watches(1)


def test_a_silent_watch_counts_as_lost(api: FakeKubernetes, workloads: Workloads, changes: Changes) -> None:
    before = changes.count
    api.stall_watches()
    workloads.set_behaviour("policy/1", "crashing")
    changes.wait_beyond(before)


def test_a_history_that_is_gone_is_read_anew(
    api: FakeKubernetes, workloads: Workloads, calls: KubernetesCalls
) -> None:
    since = calls.list(PODS, labels={}).version
    workloads.set_behaviour("policy/1", "crashing")
    api.objects.compact()
    with pytest.raises(ClusterConflictError) as gone:
        list(calls.watch(PODS, labels={}, since=since, timeout_s=1, silence_s=5))
    assert gone.value.reason == "WATCH_EXPIRED"
    fresh = calls.list(PODS, labels={}).version
    events = list(calls.watch(PODS, labels={}, since=fresh, timeout_s=1, silence_s=5))
    assert {event.type for event in events} == {"BOOKMARK"}


# --- credentials -------------------------------------------------------------------------------------------


def test_the_pods_own_credentials_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes.config import incluster_config

    authority = Authority()
    files = write_files(tmp_path / "tls", authority, authority.sign("kubernetes"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with FakeKubernetes(tls=context) as api:
        Workloads(api)
        token = tmp_path / "token"
        token.write_text(api.token)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(files.ca))
        calls = KubernetesCalls(connect(kubeconfig=None), namespace=NAMESPACE)
        assert calls.get(DEPLOYMENTS, STABLE)["metadata"]["name"] == STABLE

        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")  # without the authority
        untrusting = KubernetesCalls(connect(kubeconfig=kubeconfig), namespace=NAMESPACE)
        with pytest.raises(ClusterUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            untrusting.get(DEPLOYMENTS, STABLE)


def test_no_credentials_are_an_error_that_says_where_they_were_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InvalidArgumentError, match="service account"):
        connect(kubeconfig=None)
    with pytest.raises(InvalidArgumentError, match="nowhere"):
        connect(kubeconfig=tmp_path / "nowhere")
