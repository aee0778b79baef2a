"""Makes up messages for every RPC of the labeling service: nearly right ones, and any of their types."""

from __future__ import annotations

from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from andon.api.labeling.v1 import labeling_service_pb2 as pb
from tests.labeling_fuzz_material import DOUBLES, INTEGERS, LONGS, TEXTS, ExistingIds
from tests.labeling_rpcs import request_class
from tests.labeling_world import PROJECTS, World


class MessageMaker:
    """Half of the messages are right or a little disturbed, so that they come past the first checks."""

    def __init__(self, world: World, ids: ExistingIds) -> None:
        self._world = world
        self._ids = ids
        self._number = 0

    def message(self, random: Random, method: MethodDescriptor, by: str) -> Message:
        """A request that ``by`` might send: nearly right, or all made up."""
        good = self._good(random, method.name, by) if random.randrange(2) else None
        if good is None:
            request = request_class(method)()
            self._fill(random, request, depth=0)
            return request
        for _ in range(random.choice((0, 0, 1, 2))):
            self._disturb(random, good)
        return good

    def _good(self, random: Random, name: str, by: str) -> Message | None:
        """A request that is right as it stands, for the methods that chance alone would not get right."""
        self._number += 1
        request_id = f"request-{self._number}"
        if name == "SubmitTasks":
            kinds: tuple[dict[str, Any], ...] = ({}, {}, {"purpose": pb.TASK_PURPOSE_CALIBRATION})
            fields = {"overlap_count": random.choice((1, 2, 3)), **random.choice(kinds)}
            return self._world.tasks(
                lambda field: f"{field} {self._number}", random.choice((1, 2, 5)), **fields
            )
        if name == "ImportComparisons":
            row = pb.ImportedComparison(document=f"d{random.randrange(20)}", choice=pb.Choice(best_index=0))
            row.candidates.extend([pb.Candidate(text="a"), pb.Candidate(text="b")])
            row.labeler_id = random.choice(("somebody", "w1", "w2"))
            return pb.ImportComparisonsRequest(
                request_id=request_id, project=PROJECTS[0], batch="imported.1", comparisons=[row]
            )
        labelers = [by] if by in ("lara", "rita") else [*self._ids.open, by]
        labeler = random.choice(labelers)
        if name == "LeaseTasks":
            return pb.LeaseTasksRequest(labeler_id=labeler, max_tasks=random.choice((1, 2)))
        leases = self._ids.open.get(labeler)
        if name not in ("SubmitAnswers", "SkipTasks") or not leases:
            return None
        lease_id, order = leases.pop() if random.randrange(4) else random.choice(leases)
        if name == "SkipTasks":
            skip = pb.SkippedTask(lease_id=lease_id, reason="because")
            return pb.SkipTasksRequest(request_id=request_id, labeler_id=labeler, skips=[skip])
        answer = pb.Answer(lease_id=lease_id)
        places = list(range(len(order)))
        random.shuffle(places)
        answer.ranking.tiers.extend(pb.Tier(candidate_indices=[place]) for place in places)
        return pb.SubmitAnswersRequest(request_id=request_id, labeler_id=labeler, answers=[answer])

    def _disturb(self, random: Random, message: Message) -> None:
        """Make one field of the message, or of one inside it, something else."""
        fields: list[Any] = list(message.DESCRIPTOR.fields)
        if not fields:
            return
        field = random.choice(fields)
        inner = getattr(message, field.name)
        if field.message_type is not None and random.randrange(2):
            if not field.is_repeated:
                self._disturb(random, inner)
            elif inner:
                self._disturb(random, random.choice(list(inner)))
            return
        message.ClearField(field.name)
        self._fill_field(random, message, field, depth=1)

    def _fill(self, random: Random, message: Message, *, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if random.randrange(10) >= 2:
                self._fill_field(random, message, field, depth=depth)

    def _fill_field(self, random: Random, message: Message, field: Any, *, depth: int) -> None:
        if field.is_repeated:
            number = random.choice((1, 2, 2, 2, 3, 0, 9) if field.name == "candidates" else (0, 1, 1, 2))
            values = getattr(message, field.name)
            for _ in range(number if depth < 5 else 0):
                if field.message_type is not None:
                    self._fill(random, values.add(), depth=depth + 1)
                else:
                    values.append(self._scalar(random, field))
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            if _is_time(field.message_type):
                inner.seconds = random.choice((1, 60, 3600, 0, -1, 2**62, 315_576_000_001))
                inner.nanos = random.choice((0, 0, 1, 999_999_999, -1, 2**31 - 1))
            elif depth < 5:
                self._fill(random, inner, depth=depth + 1)
        else:
            setattr(message, field.name, self._scalar(random, field))

    def _scalar(self, random: Random, field: Any) -> Any:  # Any: two classes of descriptors, one interface
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._string(random, field.name)
        if field.type == FieldDescriptor.TYPE_BOOL:
            return random.randrange(2) == 1
        if field.type == FieldDescriptor.TYPE_DOUBLE:
            return random.choice(DOUBLES)
        if field.enum_type is not None:
            known = [value.number for value in field.enum_type.values]
            return random.choice([*known, *known, *known, -1, 99])
        if field.name in ("best_index", "candidate_indices", "round", "fold") and random.randrange(8):
            return random.randrange(3)
        if field.name in ("confidence", "preference", "accuracy", "coverage", "coherence", "overall"):
            return random.choice((0, 1, 5, 7, 7, 9, -1, 10))
        if field.name == "max_tasks":
            return random.choice((0, 1, 2, 5, 1000, 1001, -1))
        return random.choice(LONGS if field.type == FieldDescriptor.TYPE_INT64 else INTEGERS)

    def _string(self, random: Random, name: str) -> str:
        draw = random.randrange(10)
        if name == "request_id" and draw < 8:
            self._number += 1
            return f"request-{self._number}"
        kinds = {
            "labeler_id": "user",
            "actor": "user",
            "name": "user",
            "page_token": "user",
            "lease_id": "lease",
        }
        known = self._ids.known.get(kinds.get(name, name))
        if known and draw < 8:
            return random.choice(known)
        if draw < 7:
            return random.choice(("text", "a b c", "another text", "x" * 64))
        return random.choice(TEXTS)


def _is_time(message: Any) -> bool:  # Any: a descriptor of either class
    return message.full_name in ("google.protobuf.Duration", "google.protobuf.Timestamp")
