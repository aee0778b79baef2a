"""How a rollout's record lies in a ConfigMap: its state, and a bounded log of decisions. Pure.

``rollout.json`` holds one object with the format's number, the revision, and the rollout as the controller
gave it. ``decisions.jsonl`` holds one decision per line, oldest first; each has a key, so that a decision
that is recorded again after a crash is recognised. Both are text, as ``kubectl get configmap`` shows it.

A ConfigMap may hold 1 MiB. The log is cut at its old end well before; what is cut remains as log lines of the
service and, for as long as the cluster keeps them, as Events.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from andon.errors import DataLossError
from services.canary.kubernetes_calls import Object

FORMAT = 1
STATE_KEY, DECISIONS_KEY = "rollout.json", "decisions.jsonl"
MAX_DECISIONS = 500
MAX_LOG_BYTES = 512 * 1024

# The rollout or a decision as JSON; what is in it is the controller's business.
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """A rollout as it was stored."""

    revision: int
    rollout: Values


def empty_record(name: str) -> Object:
    """The ConfigMap before the first rollout."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "labels": {
                "app.kubernetes.io/name": "andon-canary",
                "app.kubernetes.io/component": "canary",
                "app.kubernetes.io/part-of": "andon",
            },
        },
    }


def stored_state(config_map: Object) -> StoredState | None:
    """The rollout in a ConfigMap; None before the first one.

    Raises DataLossError ROLLOUT_RECORD_DAMAGED for what cannot be read, a later format included: a rollout
    that is not understood must not be begun anew.
    """
    text = (config_map.get("data") or {}).get(STATE_KEY)
    if text is None:
        return None
    try:
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise _damaged(config_map, f"format {values['format']!r}, this service reads {FORMAT}")
        return StoredState(revision=int(values["revision"]), rollout=dict(values["rollout"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(config_map, repr(error)) from error


def with_state(config_map: Object, state: StoredState) -> Object:
    """The ConfigMap with this rollout in the place of the one before."""
    values = {"format": FORMAT, "revision": state.revision, "rollout": state.rollout}
    return _with_data(config_map, STATE_KEY, _to_json(values))


def decisions_in(config_map: Object) -> list[Values]:
    """The log, oldest first. Raises DataLossError ROLLOUT_RECORD_DAMAGED."""
    return [entry["decision"] for entry in _entries(config_map)]


def with_decision(config_map: Object, *, key: str, decision: Values) -> Object | None:
    """The ConfigMap with one more decision; None when the log has this key already."""
    entries = _entries(config_map)
    if any(entry["key"] == key for entry in entries):
        return None
    entries.append({"key": key, "decision": decision})
    lines = [_to_json(entry) for entry in entries[-MAX_DECISIONS:]]
    sizes = [len(line.encode()) + 1 for line in lines]
    while len(lines) > 1 and sum(sizes) > MAX_LOG_BYTES:
        del lines[0], sizes[0]
    return _with_data(config_map, DECISIONS_KEY, "".join(f"{line}\n" for line in lines))


def same_state(state: StoredState | None, rollout: Values) -> bool:
    """Whether this rollout is what is stored, by what it looks like as JSON."""
    return state is not None and _to_json(state.rollout) == _to_json(rollout)


def _entries(config_map: Object) -> list[Values]:
    lines = (config_map.get("data") or {}).get(DECISIONS_KEY, "").splitlines()
    try:
        entries = [json.loads(line) for line in lines]
        return [{"key": entry["key"], "decision": entry["decision"]} for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(config_map, repr(error)) from error


def _with_data(config_map: Object, key: str, text: str) -> Object:
    result = copy.deepcopy(config_map)
    result["data"] = {**(result.get("data") or {}), key: text}
    return result


def _to_json(values: Values) -> str:
    """One line. Numbers that are not finite have no JSON, and evidence must not hold any."""
    return json.dumps(values, separators=(",", ":"), allow_nan=False)


def _damaged(config_map: Object, why: str) -> DataLossError:
    name = config_map["metadata"]["name"]
    return DataLossError(
        f"the record in ConfigMap {name} cannot be read ({why}); repair or delete it by hand",
        reason="ROLLOUT_RECORD_DAMAGED",
        config_map=name,
    )
