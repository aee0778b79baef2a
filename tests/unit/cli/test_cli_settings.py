"""How files and --set become settings."""

import json
from pathlib import Path

import pytest

from andon.cli.settings import apply_assignments, read_settings, write_service_configs
from andon.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("1e-4", 0.0001),
        ("true", True),
        ("null", None),
        ("eos", "eos"),
        ("sft@latest", "sft@latest"),
        ("{kind: fixed, beta: 0.1}", {"kind": "fixed", "beta": 0.1}),
        ("[1, 2]", [1, 2]),
        ("", None),
    ],
)
def test_values_are_read_as_a_person_means_them(text: str, value: object) -> None:
    assert apply_assignments({}, [f"key={text}"]) == {"key": value}


def test_a_path_of_keys_reaches_inside_and_leaves_the_rest() -> None:
    settings = {"kl": {"kind": "fixed", "beta": 0.05}, "seed": 1}
    assert apply_assignments(settings, ["kl.beta=0", "new.inner=x"]) == {
        "kl": {"kind": "fixed", "beta": 0},
        "seed": 1,
        "new": {"inner": "x"},
    }
    assert settings["kl"] == {"kind": "fixed", "beta": 0.05}


@pytest.mark.parametrize("assignment", ["novalue", "=1", "a..b=1", "seed.part=1", "a={unclosed"])
def test_a_broken_assignment_is_named(assignment: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        apply_assignments({"seed": 1}, [assignment])
    assert caught.value.reason == "INVALID_ASSIGNMENT"


def test_yaml_and_json_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\nkl: {beta: 0.1}\n")
    (tmp_path / "a.json").write_text('{"seed": 1, "kl": {"beta": 0.1}}')
    (tmp_path / "empty.yaml").write_text("")
    assert read_settings(tmp_path / "a.yaml") == read_settings(tmp_path / "a.json")
    assert read_settings(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize("content", ["[1]", "a: b: c", "3", "1: x"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InvalidArgumentError, match=r"bad\.yaml"):
        read_settings(path)


def test_sections_become_one_file_per_service(tmp_path: Path) -> None:
    files = write_service_configs({"policy": {"threads": 2}}, tmp_path)
    assert json.loads(files["policy"].read_text()) == {"threads": 2}


@pytest.mark.parametrize("settings", [{"policies": {}}, {"policy": 3}])
def test_a_wrong_section_is_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        write_service_configs(settings, tmp_path)
