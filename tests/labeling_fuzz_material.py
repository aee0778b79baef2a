"""What made-up requests to the labeling service are made of: odd values, and the ids that exist."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from services.labeling import schema
from services.labeling.accounts import Role
from tests.labeling_world import NAMES, OTHER_LABELER, PROJECTS, World

TEXTS = (
    "", " ", "a", "text", "x" * 300, "x" * 10_001, "\n", "a\r\nb", "<b>&\"'", "\u202e", "\u0000", "🙂" * 50,
    "%", "_", "'; --", "..", ".", "-", "a/b", "A" * 43, "0" * 32, "None", "null", "true", "lara", "{}", "[]",
)  # fmt: skip
NUMBERS = (
    "0", "1", "2", "3", "5", "9", "10", "100", "-1", "9" * 19, "9" * 30, "1e3", "1.5", "+1", "0x1", "NaN",
    "٣", "", "2147483648", "9223372036854775807", "9223372036854775808",
)  # fmt: skip
INTEGERS = (0, 1, 2, 3, 9, 10, 100, 1000, -1, -(2**31), 2**31 - 1)
LONGS = (*INTEGERS, 2**31, 2**53, 2**63 - 1, -(2**63))
DOUBLES = (0.0, 0.1, 0.5, 0.9, 1.0, -1.0, 1.1, 1e308, float("inf"), float("-inf"), float("nan"), 5e-324)
JSON_LINES = (
    '{"document": "d", "candidates": ["a", "b"]}',
    '{"document": "d", "candidates": ["a", "b"], "purpose": "gold", "expected": [[0], [1]]}',
    '{"document": "d", "candidates": ["a"], "kind": "edit"}',
    '{"document": "d", "candidates": [], "kind": "write"}',
    '{"document": "d", "candidates": ["a", "b"], "overlap": 1e9}',
    '{"post": "p", "summaries": [{"text": "a"}, {"text": "b"}], "choice": 1, "worker": "w"}',
    '{"chosen": "\\n\\nHuman: h\\n\\nAssistant: a", "rejected": "\\n\\nHuman: h\\n\\nAssistant: b"}',
    '{"document": "d"}', "{", "[]", "1", "null", '"x"', "[" * 2000, "",
)  # fmt: skip


class ExistingIds:
    """Ids in the service's database, as they were when ``look_up`` was called last."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.known: dict[str, list[str]] = {}  # by kind
        self.leases_in: dict[tuple[str, str], list[str]] = {}  # by labeler and project
        self.tasks: dict[str, list[str]] = {}  # by project
        self.open: dict[str, list[tuple[str, list[int]]]] = {}  # leases and shown orders, by labeler

    def look_up(self) -> None:
        rows = self._world.rows
        tasks, batches, projects = schema.tasks, schema.batches, schema.projects
        with_project = (
            sa.select(schema.leases, projects.c.name.label("project"))
            .join(tasks, tasks.c.id == schema.leases.c.task_id)
            .join(batches, batches.c.id == tasks.c.batch_id)
            .join(projects, projects.c.id == batches.c.project_id)
        )
        leases = rows(with_project.order_by(schema.leases.c.lease_us.desc()).limit(200))
        self.leases_in, self.tasks, self.open = {}, {}, {}
        for lease in leases:
            self.leases_in.setdefault((lease.labeler_id, lease.project), []).append(lease.id)
            self.tasks.setdefault(lease.project, []).append(str(lease.task_id))
            if not lease.is_answered and not lease.is_skipped and lease.shown_order:
                self.open.setdefault(lease.labeler_id, []).append((lease.id, lease.shown_order))
        self.known = {
            "lease": [lease.id for lease in leases] or ["0" * 32],
            "task": _last(rows, schema.tasks.c.id),
            "answer": _last(rows, schema.comparisons.c.id),
            "project": [*PROJECTS, *PROJECTS, "default", *_last(rows, schema.projects.c.name, 20), "nothing"],
            "batch": [f"{name}.1" for name in PROJECTS] + [*_last(rows, schema.batches.c.name, 20), "new.1"],
            "user": [*NAMES.values(), OTHER_LABELER, "somebody", "new-user", ""],
            "role": ["labeler", "researcher", "admin", "service", ""],
            "invitation": _last(rows, schema.invitations.c.token_sha256, 20),
            "token": [*self._new_links(), "A" * 43],
            "days": ["1", "7", "90", "91", ""],
            "reason": ["subject", "other", "because", ""],
            "state": ["open", "closed", ""],
            "preference": [str(number) for number in range(1, 10)],
            "text": ["some words", ""],
            "version": ["1", "2", "0"],
            "weights_sha256": ["", "ab" * 32, "x"],
            "tasks": list(JSON_LINES),
        }  # fmt: skip

    def _new_links(self) -> list[str]:
        accounts = self._world.site.accounts
        return [accounts.invite(role=Role.LABELER, user_name="", created_by="fuzzer").secret]


def _last(rows: Any, column: sa.Column[Any], number: int = 100) -> list[str]:
    query = sa.select(column).order_by(column.desc()).limit(number)
    return [str(row[0]) for row in rows(query)] or ["1"]
