"""The labeling service's configuration."""

import pytest
from pydantic import ValidationError

from andon.rpc.config import load_config
from services.labeling.config import LabelingConfig


def test_defaults() -> None:
    config = LabelingConfig()
    assert (config.port, config.metrics_port) == (50054, 9104)
    assert config.database == "sqlite:///andon-home/labeling.sqlite3"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "", "not a url"])
def test_databases_that_cannot_keep_answers_are_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        LabelingConfig(database=url)


def test_flags_and_environment() -> None:
    config = load_config(
        LabelingConfig,
        service="labeling",
        argv=["--database", "sqlite:////tmp/x.sqlite3", "--cord-keepalive-s", "0.5"],
        environment={"ANDON_LABELING_MAX_TEXT_CHARS": "77"},
    )
    assert (config.database, config.cord_keepalive_s, config.max_text_chars) == (
        "sqlite:////tmp/x.sqlite3",
        0.5,
        77,
    )


def test_an_unknown_flag_ends_the_process() -> None:
    with pytest.raises(SystemExit) as ended:
        load_config(LabelingConfig, service="labeling", argv=["--databse", "x"], environment={})
    assert ended.value.code == 2
