import pytest

from andon.errors import InvalidArgumentError
from andon.modeling.versions import ModelAlias, ModelSource, ModelVersion, check_family, parse_model_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("policy/12", ModelVersion("policy", 12)),
        ("sft/000001", ModelVersion("sft", 1)),
        ("policy@stable", ModelAlias("policy", "stable")),
        ("openai-community/gpt2", ModelSource("openai-community/gpt2")),
        ("gpt2", ModelSource("gpt2")),
        ("/models/mine", ModelSource("/models/mine")),
        ("./policy/12", ModelSource("./policy/12")),
        ("EleutherAI/pythia-1b", ModelSource("EleutherAI/pythia-1b")),
    ],
)
def test_names_are_read_as_version_alias_or_source(name: str, expected: object) -> None:
    assert parse_model_name(name) == expected
    assert parse_model_name(str(expected)) == expected


@pytest.mark.parametrize(
    "name",
    [
        "",
        " policy/1",
        "policy/0",
        "policy@",
        "Policy@stable",
        "policy@Stable!",
        "a\0b",
        "p" * 256,
        "models/" + "ä" * 128,
        "/".join(["models"] * 200),
    ],
)
def test_broken_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_model_name(name)
    assert caught.value.reason == "INVALID_MODEL_NAME"


@pytest.mark.parametrize("family", ["", "Policy", "../up", "a/b", "1st", "aliases", "reservations"])
def test_families_cannot_leave_the_store(family: str) -> None:
    with pytest.raises(InvalidArgumentError):
        check_family(family)


def test_same_name_ignores_the_digest() -> None:
    assert ModelVersion("policy", 3, "ab").is_same_name(ModelVersion("policy", 3))
    assert not ModelVersion("policy", 3).is_same_name(ModelVersion("policy", 4))
