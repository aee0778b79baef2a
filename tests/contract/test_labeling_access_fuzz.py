"""Strange messages to every RPC of labeling, as every role: nothing ends in INTERNAL or UNKNOWN."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.site import SiteUnderTest
from tests.tokens import ROLES

PACKAGE = "andon.api.labeling.v1"
TIMEOUT_S = 30
TEXTS = (
    "",
    "1",
    "p",
    "b",
    "default",
    "lara",
    "admin",
    "service",
    "a b",
    "\x00",
    "x" * 300,
    "é\u202e😀",
    "../x",
)
NUMBERS = (0, 1, 2, 3, 9, 10, -1, 100, 1000, 2**31 - 1, -(2**31))
LARGE = (*NUMBERS, 2**63 - 1, -(2**63))
FRACTIONS = (0.0, 0.5, 1.0, -1.0, 1e308, float("inf"), float("nan"))


def random_message(kind: Descriptor, chance: random.Random, depth: int = 0) -> Message:
    message = GetMessageClass(kind)()
    for field in kind.fields:
        if chance.random() < 0.35 or (depth > 4 and field.message_type is not None):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.is_repeated:
            values = [random_value(field, chance, depth) for _ in range(chance.choice((0, 1, 2, 3, 10)))]
            getattr(message, field.name).extend(values)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(random_value(field, chance, depth))
        else:
            setattr(message, field.name, random_value(field, chance, depth))
    return message


def random_value(field: FieldDescriptor, chance: random.Random, depth: int) -> Any:
    if field.message_type is not None:
        return random_message(field.message_type, chance, depth + 1)
    if field.enum_type is not None:
        return chance.choice([value.number for value in field.enum_type.values] + [77])
    by_type: dict[int, tuple[Any, ...]] = {
        FieldDescriptor.CPPTYPE_STRING: TEXTS,
        FieldDescriptor.CPPTYPE_INT32: NUMBERS,
        FieldDescriptor.CPPTYPE_INT64: LARGE,
        FieldDescriptor.CPPTYPE_UINT32: tuple(abs(number) for number in NUMBERS),
        FieldDescriptor.CPPTYPE_UINT64: tuple(abs(number) for number in LARGE),
        FieldDescriptor.CPPTYPE_BOOL: (True, False),
        FieldDescriptor.CPPTYPE_FLOAT: FRACTIONS,
        FieldDescriptor.CPPTYPE_DOUBLE: FRACTIONS,
    }
    value = chance.choice(by_type[field.cpp_type])
    return value.encode() if field.type == FieldDescriptor.TYPE_BYTES else value


def methods() -> list[MethodDescriptor]:
    pool = descriptor_pool.Default()
    return [
        method
        for service in ("LabelingService", "CordService", "AccessService")
        for method in pool.FindServiceByName(f"{PACKAGE}.{service}").methods
    ]


def call(channel: grpc.Channel, method: MethodDescriptor, requests: list[bytes]) -> str:
    """The code that a call ends with; a stream that would go on is let go after a few answers."""
    path = f"/{method.containing_service.full_name}/{method.name}"

    def sent() -> Iterator[bytes]:
        yield from requests

    answers = channel.stream_stream(path)(sent(), timeout=TIMEOUT_S)
    try:
        for number, _answer in enumerate(answers):
            if number == 2:
                break
        return "OK"
    except grpc.RpcError as error:
        found: Any = error
        return str(found.code().name)
    finally:
        answers.cancel()


def fuzz(
    site: SiteUnderTest, connect: Callable[..., grpc.Channel], *, num_calls: int, seed: int
) -> Counter[str]:
    chance = random.Random(seed)
    channels = {name: connect(site.running, name) for name in ROLES}
    codes: Counter[str] = Counter()
    for number in range(num_calls):
        method = chance.choice(methods())
        if method.name in ("ExportComparisons", "WatchCord") and chance.random() < 0.8:
            continue  # they may wait for more, which takes long
        requests = []
        for _ in range(chance.choice((1, 1, 3)) if method.client_streaming else 1):
            message = random_message(method.input_type, chance)
            if "follow" in method.input_type.fields_by_name:
                message.ClearField("follow")
            raw = message.SerializeToString()
            requests.append(chance.randbytes(chance.randrange(40)) if chance.random() < 0.05 else raw)
        name = chance.choice(["admin", *ROLES])
        code = call(channels[name], method, requests)
        codes[code] += 1
        assert code not in ("INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"), (
            number,
            seed,
            name,
            method.name,
            requests,
        )
    return codes


def test_strange_messages(
    start_site: Callable[..., SiteUnderTest], connect: Callable[..., grpc.Channel]
) -> None:
    codes = fuzz(start_site(cord_keepalive_s=0.01), connect, num_calls=500, seed=1)
    assert codes["OK"] > 20
    assert codes["INVALID_ARGUMENT"] > 50
    assert codes["PERMISSION_DENIED"] > 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_strange_messages(
    start_site: Callable[..., SiteUnderTest], connect: Callable[..., grpc.Channel]
) -> None:
    codes = fuzz(start_site(cord_keepalive_s=0.01), connect, num_calls=11_500, seed=2)
    assert codes.total() >= 10_000
