"""Parts of a line that the cord stops: labeling processes that may be killed, listeners, labelers at work.

``benchmarks.cord`` measures with them, and tests of the cord use them too.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio

from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from andon.client.labeling import LabelingClient
from andon.errors import AndonError
from benchmarks.labeling_load import BATCH, GrpcLabeler, WrongAnswerError, submit
from benchmarks.labeling_processes import ROOT, Holder

T = TypeVar("T")

TIMEOUT_S = 120.0


class LabelingServer:
    """``python -m services.labeling``, which keeps its ports when it is started again."""

    def __init__(
        self, name: str, database_url: str, folder: Path, callers: Sequence[Holder], *flags: str
    ) -> None:
        """``name`` is that of its log. Servers in one folder have the same callers."""
        self._log = folder / f"{name}.log"
        self._flags = [f"--database={database_url}", "--log-level=WARNING", *flags]
        self._ports = {"port": 0, "web_port": 0}
        tokens = folder / "tokens.json"
        if not tokens.exists():
            tokens.touch(mode=0o600)
            entries = [{"name": one.name, "role": one.role, "token": one.token} for one in callers]
            tokens.write_text(json.dumps(entries))
        self._flags.append(f"--tokens-file={tokens}")
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start, and return when it answers."""
        ports = [f"--{name.replace('_', '-')}={port}" for name, port in self._ports.items()]
        command = [sys.executable, "-m", "services.labeling", "--metrics-port=0", *ports, *self._flags]
        self.process, facts = start_process(command, self._log)
        self._ports = {"port": int(facts["port"]), "web_port": int(facts["web_port"])}

    @property
    def target(self) -> str:
        """Where gRPC answers."""
        return f"127.0.0.1:{self._ports['port']}"

    @property
    def web_url(self) -> str:
        """Where the site answers."""
        return f"http://127.0.0.1:{self._ports['web_port']}"

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once, without a chance to finish anything."""
        self.end(signal.SIGKILL)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait for the end."""
        if self.process is not None:
            end_process(self.process, how)
            self.process = None


def start_process(command: Sequence[str], log: Path, **environment: str) -> tuple[Any, Mapping[str, Any]]:
    """Start a service and give its process and what its ready line says."""
    with log.open("a") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ANDON_READY "):
        end_process(process, signal.SIGKILL)
        raise SystemExit(f"{command[2]} did not start:\n{log.read_text()[-2000:]}")
    return process, json.loads(line.removeprefix("ANDON_READY "))


def end_process(process: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM) -> None:
    """End a process and wait for it."""
    process.send_signal(how)
    process.wait(TIMEOUT_S)
    assert process.stdout is not None
    process.stdout.close()


class Told:
    """What a listening thread has heard, for others to wait for."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._heard: list[tuple[float, Any]] = []
        self._error: BaseException | None = None

    def follow(self, listen: Callable[[], Iterator[Any]]) -> None:
        """Note everything that comes, with its moment, until the stream ends."""

        def run() -> None:
            try:
                for word in listen():
                    with self._news:
                        self._heard.append((time.monotonic(), word))
                        self._news.notify_all()
            except (AndonError, ValueError) as error:  # the stream broke, or was closed from here
                with self._news:
                    self._error = error
                    self._news.notify_all()

        threading.Thread(target=run, daemon=True).start()

    def wait_for(self, wanted: Callable[[Any], bool], *, after_s: float) -> float:
        """The moment of the first word after ``after_s`` that is wanted."""
        deadline_s = time.monotonic() + TIMEOUT_S
        looked_at = 0
        with self._news:
            while True:
                for moment_s, word in self._heard[looked_at:]:
                    if moment_s >= after_s and wanted(word):
                        return moment_s
                looked_at = len(self._heard)
                if self._error is not None:
                    raise self._error
                if not self._news.wait(deadline_s - time.monotonic()):
                    raise WrongAnswerError("nothing was heard in time")

    def words(self, kind: type[T]) -> list[T]:
        """Everything of a kind."""
        with self._news:
            return [word for _, word in self._heard if isinstance(word, kind)]


@contextmanager
def labelers_at_work(
    target: str, workers: Sequence[Holder], service_token: str, *, num_tasks: int
) -> Iterator[None]:
    """Inside, labelers lease and answer without a pause; afterwards every answer of theirs must be there."""
    with LabelingClient(target, token=service_token) as client:
        submit(client, num_tasks)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, target, workers, service_token, num_tasks)
        process = context.Process(target=_labelers, args=arguments, daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of what it says
        try:
            if ours.recv() != "working":
                raise WrongAnswerError("the labelers did not begin")
            yield
            ours.send("stop")
            acknowledged = ours.recv()
        finally:
            process.terminate()
            process.join(TIMEOUT_S)
        recorded = sum(1 for _ in client.export_comparisons(batch=BATCH, timeout_s=None))
        if not isinstance(acknowledged, int) or acknowledged != recorded:
            raise WrongAnswerError(f"{recorded} answers are recorded, acknowledged: {acknowledged}")
        print(f"{acknowledged} answers of {len(workers)} labelers meanwhile", flush=True)


def _labelers(
    pipe: Connection, target: str, workers: Sequence[Holder], service_token: str, num_tasks: int
) -> None:
    with LabelingClient(target, token=service_token) as client:
        asyncio.run(_work(pipe, target, workers, more_work=lambda: submit(client, num_tasks)))


async def _work(
    pipe: Connection, target: str, workers: Sequence[Holder], *, more_work: Callable[[], None]
) -> None:
    stop = asyncio.Event()
    refilling = asyncio.Lock()
    num_answers = 0

    async def work(worker: Holder) -> None:
        nonlocal num_answers
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub: labeling_grpc.LabelingServiceAsyncStub = labeling_grpc.LabelingServiceStub(channel)
            labeler = GrpcLabeler(worker, stub)
            while not stop.is_set():
                leased = await labeler.lease()
                if leased is None:
                    is_first = not refilling.locked()
                    async with refilling:
                        if is_first:
                            await asyncio.to_thread(more_work)
                    continue
                await labeler.answer(leased, 3)
                num_answers += 1
                if num_answers == len(workers):
                    pipe.send("working")

    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(work(worker))
        await asyncio.to_thread(pipe.recv)
        stop.set()
    pipe.send(num_answers)
