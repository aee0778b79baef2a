"""The tokens of a home: made once, for the owner only, and sent to no other machine."""

import json
import stat
from pathlib import Path

import pytest

from andon.cli.tokens import find_token, has_own_name, make_tokens, read_tokens, tokens_path
from andon.errors import InvalidArgumentError


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANDON_TOKEN", raising=False)


def test_tokens_are_made_once_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    made = make_tokens(tmp_path)
    assert make_tokens(tmp_path) == made == read_tokens(tmp_path)
    assert made.admin != made.service
    assert len(made.admin) == 43
    assert stat.S_IMODE(tokens_path(tmp_path).stat().st_mode) == 0o600
    entries = json.loads(tokens_path(tmp_path).read_text())
    assert [(entry["name"], entry["role"]) for entry in entries] == [
        ("admin", "admin"),
        ("service", "service"),
    ]
    assert list(tmp_path.iterdir()) == [tokens_path(tmp_path)]


def test_a_home_without_tokens(tmp_path: Path) -> None:
    assert read_tokens(tmp_path) is None
    assert find_token("127.0.0.1:50054", home=tmp_path) is None


@pytest.mark.parametrize("content", ["{", "[]", "7", '[{"name": "admin"}]', '[["admin", "x"]]'])
def test_a_broken_file_is_said_to_be_broken(tmp_path: Path, content: str) -> None:
    tokens_path(tmp_path).write_text(content)
    with pytest.raises(InvalidArgumentError) as caught:
        find_token("127.0.0.1:50054", home=tmp_path)
    assert caught.value.reason == "INVALID_TOKENS"


@pytest.mark.parametrize(
    ("target", "is_given"),
    [
        ("127.0.0.1:50054", True),
        ("localhost:50054", True),
        ("[::1]:50054", True),
        ("192.0.2.1:50054", False),
        ("labels.example.org:443", False),
        ("dns:///labeling:50054", False),
        ("", False),
    ],
)
def test_the_token_of_a_home_stays_on_the_machine(tmp_path: Path, target: str, is_given: bool) -> None:
    made = make_tokens(tmp_path)
    assert find_token(target, home=tmp_path) == (made.admin if is_given else None)


def test_the_variable_goes_first_and_names_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tokens(tmp_path)
    assert not has_own_name()
    monkeypatch.setenv("ANDON_TOKEN", "my own")
    assert has_own_name()
    for target in ("127.0.0.1:50054", "labels.example.org:443"):
        assert find_token(target, home=tmp_path) is None, "the client takes it from the environment"
