"""Where a command looks for a service."""

from pathlib import Path

import pytest

from andon.cli.endpoints import find_target, read_endpoints, remove_endpoints, write_endpoints
from andon.errors import InvalidArgumentError


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ANDON_HOME", "ANDON_POLICY_TARGET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_flag_over_variable_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_target("policy", home=tmp_path) == "127.0.0.1:50051"
    write_endpoints(tmp_path, {"policy": "127.0.0.1:1"})
    assert find_target("policy", home=tmp_path) == "127.0.0.1:1"
    assert find_target("reward", home=tmp_path) == "127.0.0.1:50053"
    monkeypatch.setenv("ANDON_POLICY_TARGET", "b:2")
    assert find_target("policy", home=tmp_path) == "b:2"
    assert find_target("policy", "c:3", home=tmp_path) == "c:3"


def test_the_home_is_flag_then_variable_then_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "andon-home").mkdir()
    write_endpoints(tmp_path / "andon-home", {"policy": "here:1"})
    (tmp_path / "other").mkdir()
    write_endpoints(tmp_path / "other", {"policy": "other:1"})
    assert find_target("policy") == "here:1"
    monkeypatch.setenv("ANDON_HOME", str(tmp_path / "other"))
    assert find_target("policy") == "other:1"


def test_addresses_are_gone_after_the_end(tmp_path: Path) -> None:
    write_endpoints(tmp_path, {"policy": "a:1"})
    remove_endpoints(tmp_path)
    remove_endpoints(tmp_path)
    assert read_endpoints(tmp_path) == {}


@pytest.mark.parametrize("content", ["{", "[]", '{"policy": 3}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "endpoints.json").write_text(content)
    with pytest.raises(InvalidArgumentError, match=r"endpoints\.json"):
        read_endpoints(tmp_path)
