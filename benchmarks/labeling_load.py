"""How long many labelers at once wait for the labeling service, and whether it ever gives a slot twice.

The service is a process of its own on PostgreSQL (or SQLite); all labelers live in one asyncio process beside
it, each with an identity of their own. Half of them call gRPC, half use the pages with plain forms. They
lease and answer until nothing is left, or until time is up. Then the record is read and checked: every answer
that was acknowledged is there once, no labeler has a task twice, and where the work is done each task has
exactly as many answers as it was to get. Nobody's sign-in is measured: tokens come from a file, sessions are
written to the database.

"time to think" is a pause between two items, drawn for each; without it every labeler has a request under way
all the time, and the waiting times say how much the service can do rather than how long people wait.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import random
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import grpc
import grpc.aio
import httpx

from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from andon.client.labeling import LabelingClient, TaskDraft
from andon.corpus.records import CandidateRecord
from andon.rpc.auth import bearer
from benchmarks.labeling_processes import (
    ENGINES,
    SERVICE_TOKEN_NAME,
    Holder,
    LabelingProcess,
    holders,
    labeling_process,
    print_table,
    write_results,
)
from services.labeling.account_store import AccountStore
from services.labeling.accounts import Role
from services.labeling.database import Database
from services.labeling.service import now_us
from services.labeling.session_store import SessionStore, SessionTimes

PROJECT = "default"
BATCH = "load"
OVERLAP = 2
TIMEOUT_S = 120.0
SESSION_US = 24 * 3_600_000_000
DOCUMENT = "Somebody tells at some length what has happened to them, and asks what to do now. " * 15
SUMMARY = "A summary that says it in a sentence, number "

_FIELD = re.compile(r'<input type="hidden" name="(csrf|item|nonce|revision)" value="([^"]*)"')


class WrongAnswerError(Exception):
    """The service said what it must not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is measured."""

    engine: str
    num_labelers: int
    num_tasks: int
    think_s: float = 0.0  # mean of the pause between two items
    seconds: float | None = None  # None: until nothing is left
    kinds: tuple[str, ...] = ("grpc", "http")  # labelers take turns


@dataclass(slots=True)
class Times:
    """How long each step of the labelers of one kind took, in seconds."""

    lease_s: list[float] = field(default_factory=list)
    answer_s: list[float] = field(default_factory=list)
    item_s: list[float] = field(default_factory=list)  # both


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """An item that a labeler has before them."""

    lease_id: str
    fields: Mapping[str, str] = field(default_factory=dict)  # of its form


class GrpcLabeler:
    """Calls the service as a program does."""

    kind = "grpc"

    def __init__(self, holder: Holder, stub: labeling_grpc.LabelingServiceAsyncStub) -> None:
        self.name = holder.name
        self._stub = stub
        self._metadata = (bearer(holder.token),)

    async def lease(self) -> Leased | None:
        """The next item; None when there is none."""
        request = labeling_pb2.LeaseTasksRequest(batch=BATCH, max_tasks=1)
        answer = await self._stub.LeaseTasks(request, metadata=self._metadata, timeout=TIMEOUT_S)
        return Leased(lease_id=answer.tasks[0].lease_id) if answer.tasks else None

    async def answer(self, leased: Leased, preference: int) -> None:
        """Answer it."""
        choice = labeling_pb2.Choice(best_index=0 if preference < 5 else 1)
        request = labeling_pb2.SubmitAnswersRequest(
            request_id=leased.lease_id,
            answers=[labeling_pb2.Answer(lease_id=leased.lease_id, choice=choice, confidence=preference)],
        )
        said = await self._stub.SubmitAnswers(request, metadata=self._metadata, timeout=TIMEOUT_S)
        if len(said.comparison_ids) != 1:
            raise WrongAnswerError(f"{len(said.comparison_ids)} records for one answer")


class PageLabeler:
    """Uses the pages without scripts, as a browser does."""

    kind = "http"

    def __init__(self, name: str, session: str, client: httpx.AsyncClient) -> None:
        self.name = name
        self._client = client
        self._headers = {"Cookie": f"andon={session}"}

    async def lease(self) -> Leased | None:
        """The next item's page; None when nothing is left."""
        page = await self._client.get(f"/work/{PROJECT}", headers=self._headers)
        if page.status_code != httpx.codes.OK:
            raise WrongAnswerError(f"{page.status_code} for the next item:\n{page.text[:2000]}")
        fields = {name: html.unescape(value) for name, value in _FIELD.findall(page.text)}
        return Leased(lease_id=fields["item"], fields=fields) if "item" in fields else None

    async def answer(self, leased: Leased, preference: int) -> None:
        """Send the form."""
        said = await self._client.post(
            f"/work/{PROJECT}/answer",
            data={**leased.fields, "preference": str(preference)},
            headers=self._headers,
        )
        if said.status_code != httpx.codes.SEE_OTHER:
            raise WrongAnswerError(f"{said.status_code} for an answer:\n{said.text[:2000]}")


Labeler = GrpcLabeler | PageLabeler


@dataclass(slots=True)
class Watch:
    """What all labelers have seen."""

    times: dict[str, Times] = field(default_factory=dict)  # by kind
    lease_ids: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)  # by labeler, acknowledged ones


async def work(labeler: Labeler, watch: Watch, scene: Scene, *, end_s: float, chance: random.Random) -> None:
    """Lease and answer until nothing is left or time is up."""
    times = watch.times.setdefault(labeler.kind, Times())
    if scene.think_s:  # people do not all come in the same second
        await asyncio.sleep(chance.uniform(0.0, scene.think_s))
    while time.monotonic() < end_s:
        begin_s = time.monotonic()
        leased = await labeler.lease()
        leased_s = time.monotonic()
        if leased is None:
            return
        watch.lease_ids[leased.lease_id] += 1
        if scene.think_s:
            await asyncio.sleep(chance.expovariate(1 / scene.think_s))
        answer_s = time.monotonic()
        await labeler.answer(leased, chance.choice((1, 2, 3, 4, 6, 7, 8, 9)))
        done_s = time.monotonic()
        watch.answers[labeler.name] += 1
        times.lease_s.append(leased_s - begin_s)
        times.answer_s.append(done_s - answer_s)
        times.item_s.append(leased_s - begin_s + done_s - answer_s)


async def let_work(running: LabelingProcess, names: Mapping[str, Sequence[str]], scene: Scene) -> Watch:
    """Let all labelers work at once. The first failure of any ends it."""
    watch = Watch()
    async with AsyncExitStack() as stack:
        labelers: list[Labeler] = []
        for name in names["grpc"]:
            # A connection for each, as they would come from as many machines.
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(running.target, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            stub: labeling_grpc.LabelingServiceAsyncStub = labeling_grpc.LabelingServiceStub(channel)
            labelers.append(GrpcLabeler(running.holders[name], stub))
        for name, session in begin_sessions(running.database_url, names["http"]).items():
            # A client for each: one with two hundred connections looks through all of them at each request.
            client = await stack.enter_async_context(
                httpx.AsyncClient(base_url=running.web_url, trust_env=False, verify=False, timeout=TIMEOUT_S)
            )
            labelers.append(PageLabeler(name, session, client))
        end_s = time.monotonic() + (float("inf") if scene.seconds is None else scene.seconds)
        async with asyncio.TaskGroup() as group:
            for labeler in labelers:
                group.create_task(
                    work(labeler, watch, scene, end_s=end_s, chance=random.Random(labeler.name))
                )
    return watch


def begin_sessions(database_url: str, names: Sequence[str]) -> dict[str, str]:
    """Accounts and sessions straight in the database; returns the sessions' tokens by name."""
    database = Database(database_url, new_seed=lambda: "unused")
    database.open()
    try:
        accounts = AccountStore(database, clock=now_us)
        times = SessionTimes(absolute_us=SESSION_US, idle_us=SESSION_US)
        sessions = SessionStore(database, clock=now_us, times=times)
        tokens: dict[str, str] = {}
        for name in names:
            link = accounts.invite(role=Role.LABELER, user_name=name, created_by="benchmark")
            accounts.accept_invitation(link.secret, name=name, password_hash="no password fits this")
            tokens[name] = sessions.begin(name, ended_token=None)
        return tokens
    finally:
        database.close()


def submit(client: LabelingClient, count: int) -> None:
    """Add the tasks."""
    client.submit_tasks(
        [
            TaskDraft(
                document=f"{number} {DOCUMENT}",
                candidates=tuple(CandidateRecord(text=f"{SUMMARY}{index} of {number}") for index in range(2)),
                overlap=OVERLAP,
            )
            for number in range(count)
        ],
        batch=BATCH,
        wait_for_ready=True,
    )


def check(client: LabelingClient, watch: Watch, scene: Scene) -> None:
    """Compare what was acknowledged with the record; raises WrongAnswerError."""
    doubled = [lease_id for lease_id, count in watch.lease_ids.items() if count > 1]
    if doubled:
        raise WrongAnswerError(f"{len(doubled)} leases were given out twice")
    answers_by_task: Counter[str] = Counter()
    answers_by_labeler: Counter[str] = Counter()
    pairs: set[tuple[str, str]] = set()
    for record in client.export_comparisons(batch=BATCH, timeout_s=None):
        answers_by_task[record.task_id] += 1
        answers_by_labeler[record.labeler_id] += 1
        pairs.add((record.task_id, record.labeler_id))
    if answers_by_labeler != watch.answers:
        raise WrongAnswerError("the record is not what was acknowledged")
    if len(pairs) != answers_by_labeler.total():
        raise WrongAnswerError("a labeler has answered a task twice")
    counts = Counter(answers_by_task.values())
    if max(counts) > OVERLAP:
        raise WrongAnswerError(f"tasks by number of answers: {counts}")
    if scene.seconds is None and counts != {OVERLAP: scene.num_tasks}:
        raise WrongAnswerError(f"work is left, or not exactly {OVERLAP} answers for a task: {counts}")


def percentile_ms(values: Sequence[float], share: float) -> int:
    """The smallest value that at least this share of the values does not exceed, in milliseconds."""
    ordered = sorted(values)
    return round(ordered[max(0, -int(-share * len(ordered) // 1) - 1)] * 1000)


def measure(scene: Scene) -> list[dict[str, object]]:
    """Let labelers work and check the record: a row for each kind of labeler."""
    names: dict[str, list[str]] = {"grpc": [], "http": []}
    for number in range(scene.num_labelers):
        kind = scene.kinds[number % len(scene.kinds)]
        names[kind].append(f"{kind}-labeler-{number}")
    callers = holders(*names["grpc"], role=Role.LABELER.value)
    with (
        labeling_process(scene.engine, callers=callers, flags=["--log-level=WARNING"]) as running,
        LabelingClient(running.target, token=running.holders[SERVICE_TOKEN_NAME].token) as client,
    ):
        submit(client, scene.num_tasks)
        begin_s, cpu_begin = time.monotonic(), {**running.cpu_seconds(), "labelers": time.process_time()}
        watch = asyncio.run(let_work(running, names, scene))
        seconds = time.monotonic() - begin_s
        cpu_end = {**running.cpu_seconds(), "labelers": time.process_time()}
        check(client, watch, scene)
    return [
        {
            "engine": scene.engine,
            "labelers": f"{len(names[kind])} {kind}",
            "tasks": scene.num_tasks,
            "think s": scene.think_s,
            "items": len(times.item_s),
            "items/s": round(len(times.item_s) / seconds, 1),
            **{
                f"{step} p50/p95/p99 ms": "/".join(
                    str(percentile_ms(values, share)) for share in (0.5, 0.95, 0.99)
                )
                for step, values in (
                    ("lease", times.lease_s),
                    ("answer", times.answer_s),
                    ("both", times.item_s),
                )
            },
            "CPU share": {part: round((cpu_end[part] - cpu_begin[part]) / seconds, 2) for part in cpu_end},
        }
        for kind, times in sorted(watch.times.items())
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, write ``results/labeling_load.json``."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--engine", choices=ENGINES, default="postgresql")
    flags.add_argument("--labelers", type=int, default=200)
    flags.add_argument("--kind", choices=("grpc", "http"), action="append", help="default: half and half")
    flags.add_argument("--tasks", type=int, default=5_000)
    flags.add_argument(
        "--think", type=float, nargs="+", default=[0.0, 5.0], help="mean pauses between two items, in seconds"
    )
    flags.add_argument("--seconds", type=float, help="stop after so long; default: when nothing is left")
    flags.add_argument("--no-results", action="store_true", help="write no file")
    arguments = flags.parse_args(argv)
    rows: list[dict[str, object]] = []
    for think_s in arguments.think:
        rows += measure(
            Scene(
                engine=arguments.engine,
                num_labelers=arguments.labelers,
                num_tasks=arguments.tasks,
                think_s=think_s,
                seconds=arguments.seconds,
                kinds=tuple(arguments.kind or ("grpc", "http")),
            )
        )
    print_table(rows)
    if not arguments.no_results:
        print(write_results("labeling_load", rows))


if __name__ == "__main__":
    main()
