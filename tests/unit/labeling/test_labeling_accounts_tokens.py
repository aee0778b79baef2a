"""The file with tokens: who may read it, what it says, and that it is read again."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from andon.errors import FailedPreconditionError
from andon.rpc.auth import Caller, hash_token
from services.labeling.token_holders import TokensInFile, read_tokens_file

TOKEN = "a token of some length"


def write(path: Path, content: Any, *, mode: int = 0o600) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


def holder(tokens: TokensInFile, token: str = TOKEN) -> Caller | None:
    return asyncio.run(tokens.caller_of(hash_token(token)))


def test_tokens_in_clear_and_as_hashes(tmp_path: Path) -> None:
    other = "another token of some length"
    path = write(
        tmp_path / "t",
        [
            {"name": "bot", "role": "service", "token": TOKEN},
            {"name": "ann", "role": "labeler", "token_sha256": hash_token(other)},
        ],
    )
    tokens = TokensInFile(path)
    tokens.read()
    assert holder(tokens) == Caller(name="bot", role="service")
    assert holder(tokens, other) == Caller(name="ann", role="labeler")
    assert holder(tokens, "unknown token of a length") is None


def test_yaml_is_read_too(tmp_path: Path) -> None:
    path = write(tmp_path / "t", f"- name: bot\n  role: admin\n  token: {TOKEN}\n")
    assert list(read_tokens_file(path).values()) == [Caller(name="bot", role="admin")]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "just text",
        {"name": "bot"},
        [{"name": "bot", "role": "service"}],
        [{"name": "bot", "role": "boss", "token": TOKEN}],
        [{"name": "b o t", "role": "service", "token": TOKEN}],
        [{"name": 7, "role": "service", "token": TOKEN}],
        [{"name": "bot", "role": ["service"], "token": TOKEN}],
        [{"name": "bot", "role": "service", "token": "short"}],
        [{"name": "bot", "role": "service", "token": "ä" * 20}],
        [{"name": "bot", "role": "service", "token": TOKEN, "token_sha256": "0" * 64}],
        [{"name": "bot", "role": "service", "token_sha256": "0" * 63}],
        [{"name": "bot", "role": "service", "token_sha256": "A" * 64}],
        [{"name": "bot", "role": "service", "token": TOKEN, "note": "x"}],
        [{"name": "bot", "role": "service", "token": TOKEN}] * 2,
        [7],
    ],
)
def test_what_is_no_list_of_tokens_is_refused_without_telling_them(tmp_path: Path, content: Any) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        TokensInFile(write(tmp_path / "t", content)).read()
    assert caught.value.reason == "TOKENS_FILE"
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o644])
def test_a_file_that_everybody_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "t", [{"name": "bot", "role": "service", "token": TOKEN}], mode=mode)
    with pytest.raises(FailedPreconditionError, match="chmod"):
        TokensInFile(path).read()
    path.chmod(0o640)
    TokensInFile(path).read()


def test_a_missing_file_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        TokensInFile(tmp_path / "nothing").read()
    assert caught.value.reason == "TOKENS_FILE"


def test_a_change_is_seen_a_broken_file_changes_nothing_a_gone_one_ends_all(tmp_path: Path) -> None:
    path = write(tmp_path / "t", [{"name": "bot", "role": "service", "token": TOKEN}])
    tokens = TokensInFile(path)
    tokens.read()
    write(path, "{ broken")
    assert holder(tokens) == Caller(name="bot", role="service")
    # As Kubernetes and careful people replace files.
    os.replace(write(tmp_path / "new", [{"name": "bot", "role": "admin", "token": TOKEN}]), path)
    assert holder(tokens) == Caller(name="bot", role="admin")
    path.unlink()
    assert holder(tokens) is None
    write(path, [{"name": "bot", "role": "labeler", "token": TOKEN}])
    assert holder(tokens) == Caller(name="bot", role="labeler")
