"""Tokens in a file: who holds which, what is refused, and what a changed file does."""

import asyncio
import hashlib
import json
from pathlib import Path

import pytest

from andon.errors import InvalidArgumentError
from andon.rpc.auth import Caller
from andon.rpc.token_file import TokenFile, read_token_file

TOKEN = "a token that nobody may read"
SHA256 = hashlib.sha256(TOKEN.encode()).hexdigest()


def write(path: Path, *entries: object) -> Path:
    path.write_text(json.dumps(list(entries)))
    return path


def entry(**changes: object) -> dict[str, object]:
    return {"name": "trainer-0", "role": "trainer", "sha256": SHA256, **changes}


def holder(file: TokenFile) -> Caller | None:
    return asyncio.run(file.caller_of(SHA256))


def test_a_holder_is_found_by_the_hash(tmp_path):
    file = TokenFile(write(tmp_path / "tokens", entry()))
    assert holder(file) == Caller(name="trainer-0", role="trainer")
    assert asyncio.run(file.caller_of("0" * 64)) is None


def test_a_changed_file_counts_at_once_a_broken_one_not_and_a_missing_one_closes(tmp_path):
    path = write(tmp_path / "tokens", entry())
    file = TokenFile(path)
    write(path, entry(role="client"))
    assert holder(file) == Caller(name="trainer-0", role="client")
    path.write_text("{")
    assert holder(file) == Caller(name="trainer-0", role="client")
    path.unlink()
    assert holder(file) is None
    write(path, entry())
    assert holder(file) == Caller(name="trainer-0", role="trainer")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "neither YAML nor JSON"),
        ("[]", "must be a list"),
        ("name: x", "must be a list"),
        (json.dumps(["x"]), "entry 1 is not {name, role, sha256}"),
        (json.dumps([{**entry(), "token": TOKEN}]), "entry 1 is not {name, role, sha256}"),
        (json.dumps([{"name": "a", "role": "trainer", "token": TOKEN}]), "entry 1 is not"),
        (json.dumps([entry(role="admin")]), "the role must be one of client, researcher, service, trainer"),
        (json.dumps([entry(role=["trainer"])]), "the role must be one of"),
        (json.dumps([entry(name="")]), "a name has 1 to 64"),
        (json.dumps([entry(name="a\nb")]), "a name has 1 to 64"),
        (json.dumps([entry(sha256=TOKEN)]), "sha256 is 64 lower-case hexadecimal digits"),
        (json.dumps([entry(sha256=SHA256.upper())]), "sha256 is 64"),
        (json.dumps([entry(), entry(name="b")]), "entry 2 repeats a token"),
    ],
)
def test_a_wrong_file_is_refused_and_no_token_is_quoted(tmp_path, content, problem):
    path = tmp_path / "tokens"
    path.write_text(content)
    with pytest.raises(InvalidArgumentError) as raised:
        read_token_file(path)
    assert problem in raised.value.message
    assert raised.value.reason == "TOKENS_FILE"
    assert TOKEN not in raised.value.message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidArgumentError, match="cannot be read: No such file"):
        TokenFile(tmp_path / "none")
