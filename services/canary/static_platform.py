"""The platform of a rollout on one machine: processes that run already, and Envoy before them.

A version is deployed by LoadModel, so the canary's process serves something also when there is no rollout;
what it serves then gets no traffic. The weights are a file that Envoy reads again when another one is renamed
into its place (``andon.envoy``). The record is a folder: ``rollout.json`` and ``decisions.jsonl``, each
replaced as a whole, and a lock that only one controller holds.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import structlog

from andon.client.policy import PolicyClient
from andon.client.values import ModelInfo
from andon.envoy import read_canary_percent, write_routes
from andon.errors import (
    AndonError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    UnavailableError,
)
from andon.modeling.store import ModelStore
from services.canary.decisions import Decision, Kind
from services.canary.errors import StableUnknownError
from services.canary.platform import Readiness, RecordedDecision, Replica, StoredRollout, Track
from services.canary.rollout import Rollout

_log = structlog.stdlib.get_logger(__name__)
T = TypeVar("T")

INFO_TIMEOUT_S = 5.0
MOST_DECISIONS = 500
FORMAT = 1  # of rollout.json
ROLLOUT_FILE, DECISIONS_FILE, WANTED_FILE, LOCK_FILE = (
    "rollout.json",
    "decisions.jsonl",
    "wanted.json",
    "lock",
)
_MAY_PASS = (UnavailableError, DeadlineExceededError)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticReplicas:
    """Where both sides run."""

    stable: tuple[Replica, ...]
    canary: tuple[Replica, ...]

    @classmethod
    def of(
        cls,
        *,
        stable_targets: Sequence[str],
        canary_targets: Sequence[str],
        stable_metrics_urls: Sequence[str],
        canary_metrics_urls: Sequence[str],
    ) -> StaticReplicas:
        """From addresses; where no metrics are named none are read."""

        def side(track: Track, targets: Sequence[str], urls: Sequence[str]) -> tuple[Replica, ...]:
            known = urls or [""] * len(targets)
            return tuple(
                Replica(name=f"{track.value} {target}", target=target, metrics_url=url)
                for target, url in zip(targets, known, strict=True)
            )

        return cls(
            stable=side(Track.STABLE, stable_targets, stable_metrics_urls),
            canary=side(Track.CANARY, canary_targets, canary_metrics_urls),
        )

    def side(self, track: Track) -> tuple[Replica, ...]:
        """One side's."""
        return self.stable if track is Track.STABLE else self.canary


class StaticPlatform:
    """A ``platform.Platform`` of processes with fixed addresses."""

    def __init__(
        self,
        folder: Path,
        *,
        replicas: StaticReplicas,
        routes_folder: Path,
        store: ModelStore,
        load_timeout_s: float,
    ) -> None:
        """``folder`` keeps the record."""
        self._folder = folder
        self._replicas = replicas
        self._routes_folder = routes_folder
        self._store = store
        self._load_timeout_s = load_timeout_s
        self._clients: dict[str, PolicyClient] = {}
        self._problems: dict[str, str] = {}  # target -> why it did not load what it was told
        self._lock: IO[str] | None = None

    # --- who may act ---------------------------------------------------------------------------------------

    def is_leader(self) -> bool:
        """Whether this process holds the folder. The kernel frees the lock of a process that died."""
        if self._lock is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / LOCK_FILE).open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                return False
            self._lock = lock
        return True

    def close(self) -> None:
        """End all connections and let another controller act."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # --- the two sides -------------------------------------------------------------------------------------

    def stable_version(self) -> str:
        """What stable's replicas serve, by their own word. Raises StableUnknownError."""
        infos = [info for replica in self._replicas.stable if (info := self._info(replica)) is not None]
        versions = {str(info.model) for info in infos}
        if len(infos) < len(self._replicas.stable):
            raise StableUnknownError("not all of stable's replicas say what they serve")
        if len(versions) != 1:
            raise StableUnknownError(f"stable's replicas serve {', '.join(sorted(versions))}")
        version = versions.pop()
        try:
            self._store.resolve(version)
        except AndonError as error:
            raise StableUnknownError(
                f"stable serves {version}, which is not in the store, so nothing could bring it back"
            ) from error
        return version

    def deploy(self, version: str) -> None:
        """Have the canary's replicas load a version. What cannot be loaded shows in ``readiness``."""
        self._want(Track.CANARY, version)
        self._load_all(Track.CANARY, version)

    def readiness(self, track: Track) -> Readiness:
        """How many replicas say that they serve what the side was told."""
        wanted = self._wanted(track)
        replicas = self._replicas.side(track)
        if wanted is None and track is Track.CANARY:
            return Readiness(wanted=0, ready=0)
        problems = [problem for replica in replicas if (problem := self._problem(replica, wanted))]
        return Readiness(
            wanted=len(replicas), ready=len(replicas) - len(problems), problem="; ".join(problems)
        )

    def replicas(self, track: Track) -> Sequence[Replica]:
        """Those that answer."""
        if track is Track.CANARY and self._wanted(track) is None:
            return []
        return [replica for replica in self._replicas.side(track) if self._info(replica) is not None]

    def route(self, canary_percent: int) -> None:
        """Give the canary this share of the traffic; a table that somebody spoiled is written anew."""
        if self.routed() != canary_percent or not self._has_routes():
            self._check_leads()
            write_routes(self._routes_folder, canary_percent)

    def routed(self) -> int:
        """The canary's present share of the traffic, in percent; 0 while there is no table of ours."""
        return read_canary_percent(self._routes_folder) if self._has_routes() else 0

    def set_stable(self, version: str) -> None:
        """Have stable's replicas load a version, one after the other, and move the alias."""
        stored = self._store.resolve(version).version
        self._want(Track.STABLE, version)
        self._load_all(Track.STABLE, version)
        if self.readiness(Track.STABLE).is_complete:
            alias = f"{stored.family}@stable"
            present = self._store.aliases().get(alias)
            if present is None or not present.is_same_name(stored):
                self._store.set_alias(alias, stored)
                _log.info("alias_moved", alias=alias, model=version)

    def remove(self) -> None:
        """The canary's processes are no canary any more."""
        self._want(Track.CANARY, None)

    # --- the record ----------------------------------------------------------------------------------------

    def load(self) -> StoredRollout | None:
        """The newest rollout in the record."""
        values = _read_json(self._folder / ROLLOUT_FILE)
        if values is None:
            return None

        def read() -> StoredRollout:
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}, this service reads {FORMAT}")
            return StoredRollout(
                rollout=Rollout.from_values(values["rollout"]), revision=int(values["revision"])
            )

        return _understood(self._folder / ROLLOUT_FILE, read)

    def save(self, rollout: Rollout, *, revision: int) -> int:
        """Record how a rollout stands."""
        self._check_leads()
        stored = self.load()
        found = 0 if stored is None else stored.revision
        if found != revision:
            raise FailedPreconditionError(
                f"the rollout's record is of revision {found}, not {revision}; load it again",
                reason="ROLLOUT_CONFLICT",
            )
        values = {"format": FORMAT, "revision": revision + 1, "rollout": rollout.to_values()}
        self._write(ROLLOUT_FILE, json.dumps(values, allow_nan=False))
        return revision + 1

    def record(self, decision: RecordedDecision) -> None:
        """Add a decision to the record, once."""
        self._check_leads()
        known = self.decisions()
        if any(_key(entry) == _key(decision) for entry in known):
            return
        kept = [*known, decision][-MOST_DECISIONS:]
        self._write(
            DECISIONS_FILE, "".join(f"{json.dumps(asdict(entry), allow_nan=False)}\n" for entry in kept)
        )

    def decisions(self) -> Sequence[RecordedDecision]:
        """The newest decisions, oldest first."""
        path = self._folder / DECISIONS_FILE
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        return _understood(path, lambda: [_decision_of(json.loads(line)) for line in lines])

    # --- parts ---------------------------------------------------------------------------------------------

    def _load_all(self, track: Track, version: str) -> None:
        for replica in self._replicas.side(track):
            info = self._info(replica)
            if info is not None and str(info.model) == version:
                continue
            try:
                self._client(replica).load_model(version, timeout_s=self._load_timeout_s)
                self._problems.pop(replica.target, None)
            except AndonError as error:
                self._problems[replica.target] = f"{replica.name}: {error.message}"
                _log.warning("replica_did_not_load", replica=replica.name, model=version, reason=error.reason)

    def _problem(self, replica: Replica, wanted: str | None) -> str:
        """Why a replica is not ready; empty where it is."""
        info = self._info(replica)
        if info is None:
            return self._problems.get(replica.target) or f"{replica.name} serves nothing"
        if wanted is None or str(info.model) == wanted:
            return ""
        return self._problems.get(replica.target) or f"{replica.name} serves {info.model}, not {wanted}"

    def _info(self, replica: Replica) -> ModelInfo | None:
        """None from one that is down, or has no model."""
        try:
            return self._client(replica).model_info(timeout_s=INFO_TIMEOUT_S)
        except (*_MAY_PASS, FailedPreconditionError):
            return None

    def _client(self, replica: Replica) -> PolicyClient:
        if replica.target not in self._clients:
            self._clients[replica.target] = PolicyClient(replica.target)
        return self._clients[replica.target]

    def _has_routes(self) -> bool:
        try:
            read_canary_percent(self._routes_folder)
        except AndonError:
            return False
        return True

    def _wanted(self, track: Track) -> str | None:
        return (_read_json(self._folder / WANTED_FILE) or {}).get(track.value)

    def _want(self, track: Track, version: str | None) -> None:
        self._check_leads()
        values = _read_json(self._folder / WANTED_FILE) or {}
        if values.get(track.value) != version:
            self._write(WANTED_FILE, json.dumps({**values, track.value: version}))

    def _check_leads(self) -> None:
        if not self.is_leader():
            raise UnavailableError(
                f"another controller acts on {self._folder}", reason="NOT_LEADER", folder=self._folder
            )

    def _write(self, name: str, text: str) -> None:
        """Replace a file as a whole, on the disk before it is seen."""
        temporary = self._folder / f".{name}.{os.getpid()}"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / name)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _key(entry: RecordedDecision) -> tuple[object, ...]:
    """What makes a decision the same when it is taken again after a crash.

    A rollout leaves a phase and a step once by each way. Looking on may be decided any number of times.
    """
    kind = entry.decision.kind
    return (entry.rollout_id, entry.phase, entry.step, kind, entry.time_s if kind is Kind.CONTINUE else None)


def _decision_of(values: dict[str, Any]) -> RecordedDecision:
    """From JSON that ``asdict`` gave."""
    inner = values["decision"]
    return RecordedDecision(**{**values, "decision": Decision(**{**inner, "kind": Kind(inner["kind"])})})


def _read_json(path: Path) -> dict[str, Any] | None:
    """A file of ours; None where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None

    def read() -> dict[str, Any]:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise TypeError("no object")
        return values

    return _understood(path, read)


def _understood(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (KeyError, TypeError, ValueError) as error:
        raise DataLossError(
            f"{path} cannot be read ({error!r}); repair it, or remove it to forget the rollout",
            reason="ROLLOUT_RECORD_DAMAGED",
            path=path,
        ) from error
