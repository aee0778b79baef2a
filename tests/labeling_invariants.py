"""What must hold in the labeling database whatever was asked of the service.

Read from the tables with plain loops, as independent as can be of the SQL that keeps it so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import sqlalchemy as sa

from services.labeling import schema
from services.labeling.database import Database


def broken_invariants(database: Database) -> list[str]:
    """Every rule that does not hold, in words."""
    with database.engine.connect() as connection:
        tables = {
            table.name: list(connection.execute(sa.select(table))) for table in schema.metadata.sorted_tables
        }
        problems: list[str] = []
        if connection.dialect.name == "sqlite":
            problems += map(str, connection.exec_driver_sql("PRAGMA foreign_key_check").all())
            if connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() != "ok":
                problems.append("the file is damaged")
    return [
        *problems,
        *_slots(tables),
        *_leases(tables),
        *_answers(tables),
        *_chains(tables["comparisons"], "comparison"),
        *_chains(tables["demonstrations"], "demonstration"),
        *_numbers(tables),
        *_cord(tables),
    ]


Tables = dict[str, list[Any]]


def _slots(tables: Tables) -> list[str]:
    """Overlap is exact: a task has as many slots as it asks for, and each is answered at most once."""
    problems = []
    slots = defaultdict(list)
    for slot in tables["slots"]:
        slots[slot.task_id].append(slot)
    answered = Counter((one.task_id, one.slot_number) for one in tables["leases"] if one.is_answered)
    for task in tables["tasks"]:
        own = [slot for slot in slots[task.id] if slot.purpose == task.purpose]
        imported = task.content_sha256 is not None
        if task.overlap_count and not imported:
            if sorted(slot.number for slot in own) != list(range(task.overlap_count)):
                problems.append(f"task {task.id} asks for {task.overlap_count} and has {len(own)} slots")
            # Researchers' own judgements and repeats have slots of their own, and do not count.
            numbers = {slot.number for slot in own}
            people = {
                one.labeler_id
                for one in tables["leases"]
                if one.task_id == task.id and one.is_answered and one.slot_number in numbers
            }
            if len(people) > task.overlap_count:
                problems.append(f"task {task.id} asks for {task.overlap_count} and has {len(people)} people")
        for slot in slots[task.id]:
            number = answered[task.id, slot.number]
            if number > 1:
                problems.append(f"slot {slot.number} of task {task.id} is answered {number} times")
            if (slot.free_from_us is None) != (number == 1):
                problems.append(f"slot {slot.number} of task {task.id} is not as its lease says")
    return problems


def _leases(tables: Tables) -> list[str]:
    problems = []
    roots: Counter[str] = Counter()
    for name in ("comparisons", "demonstrations"):
        roots.update(one.lease_id for one in tables[name] if one.supersedes_id is None)
    skipped = {one.lease_id for one in tables["skips"]}
    counts = Counter(one.task_id for one in tables["candidates"])
    rounds = Counter((one.task_id, one.labeler_id, one.round) for one in tables["leases"])
    problems += [f"two leases of {key}" for key, number in rounds.items() if number > 1]
    for lease in tables["leases"]:
        if roots[lease.id] != int(lease.is_answered):
            problems.append(f"lease {lease.id} has {roots[lease.id]} answers, answered: {lease.is_answered}")
        if (lease.id in skipped) != lease.is_skipped:
            problems.append(f"lease {lease.id} and its skip disagree")
        if lease.is_skipped and lease.is_answered:
            problems.append(f"lease {lease.id} is answered and skipped")
        if lease.shown_order and sorted(lease.shown_order) != list(range(counts[lease.task_id])):
            problems.append(f"lease {lease.id} shows {lease.shown_order} of {counts[lease.task_id]}")
    return problems


def _answers(tables: Tables) -> list[str]:
    problems = []
    counts = Counter(one.task_id for one in tables["candidates"])
    for answer in tables["comparisons"]:
        number = counts[answer.task_id]
        places = (
            [place for tier in answer.tiers for place in tier]
            if answer.tiers is not None
            else list(range(number))
        )
        if sorted(places) != list(range(number)) or (answer.tiers and not all(answer.tiers)):
            problems.append(f"comparison {answer.id} ranks {answer.tiers} of {number}")
        if answer.best_position is not None and not 0 <= answer.best_position < number:
            problems.append(f"comparison {answer.id} chooses {answer.best_position} of {number}")
        if answer.preference is not None and not (number == 2 and 1 <= answer.preference <= 9):
            problems.append(f"comparison {answer.id} prefers {answer.preference}")
        if not 0 <= answer.confidence <= 9:
            problems.append(f"comparison {answer.id} is {answer.confidence} sure")
        if answer.ratings is not None and len(answer.ratings) != number:
            problems.append(f"comparison {answer.id} rates {len(answer.ratings)} of {number}")
    return problems


def _chains(answers: list[Any], kind: str) -> list[str]:
    """Corrections make chains: each corrects one older answer of the same lease, and is corrected once."""
    problems = []
    by_id = {one.id: one for one in answers}
    successors = Counter(one.supersedes_id for one in answers if one.supersedes_id is not None)
    problems += [
        f"{kind} {key} is corrected {number} times" for key, number in successors.items() if number > 1
    ]
    for one in answers:
        if one.supersedes_id is None:
            continue
        before = by_id.get(one.supersedes_id)
        same = before is not None and all(
            getattr(one, name) == getattr(before, name) for name in ("task_id", "lease_id", "labeler_id")
        )
        if before is None or before.id >= one.id or not same:
            problems.append(f"{kind} {one.id} corrects {one.supersedes_id}, which is not its own older one")
    roots = Counter(
        (one.task_id, one.labeler_id, getattr(one, "round", one.lease_id))
        for one in answers
        if one.supersedes_id is None
    )
    problems += [f"{kind}s: {number} first answers of {key}" for key, number in roots.items() if number > 1]
    return problems


def _numbers(tables: Tables) -> list[str]:
    problems = []
    last = {one.name: one.last for one in tables["counters"]}
    for counter, name in (
        ("task", "tasks"), ("comparison", "comparisons"), ("demonstration", "demonstrations"),
        ("message", "messages"), ("project", "projects"), ("batch", "batches"),
        ("audit_event", "audit_events"),
    ):  # fmt: skip
        numbers = sorted(one.id for one in tables[name])
        if numbers != list(range(1, last[counter] + 1)):
            problems.append(f"{name}: {len(numbers)} rows, the last number is {last[counter]}")
    versions = defaultdict(list)
    for one in tables["instructions"]:
        versions[one.project_id].append(one.version)
    for project in tables["projects"]:
        if sorted(versions[project.id]) != list(range(1, project.instructions_version + 1)):
            problems.append(f"project {project.name} lacks a version of its instructions")
    return problems


def _cord(tables: Tables) -> list[str]:
    events = sorted(tables["cord_events"], key=lambda one: one.number)
    problems = []
    if [one.number for one in events] != list(range(1, len(events) + 1)):
        problems.append("events of the cord are missing")
    for before, after in zip([None, *events], events, strict=False):
        if after.action == "release" and (before is None or before.action != "pull"):
            problems.append(f"event {after.number} releases a cord that is not pulled")
    return problems
