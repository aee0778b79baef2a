"""Common messages and our own values."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andon.errors import FailedPreconditionError
from andon.modeling.versions import ModelVersion
from andon.rpc import convert


@given(st.floats(min_value=0, max_value=1e6))
def test_durations_keep_nanoseconds(seconds):
    assert convert.duration_to_seconds(convert.seconds_to_duration(seconds)) == pytest.approx(
        seconds, abs=1e-9
    )


def test_a_duration_is_split_into_seconds_and_nanoseconds():
    duration = convert.seconds_to_duration(3.25)
    assert (duration.seconds, duration.nanos) == (3, 250_000_000)


def test_moments_keep_their_instant_whatever_the_zone():
    moment = datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone(timedelta(hours=2)))
    restored = convert.timestamp_to_datetime(convert.datetime_to_timestamp(moment))
    assert restored == moment
    assert restored.tzinfo is UTC


def test_a_moment_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        convert.datetime_to_timestamp(datetime(2026, 5, 4))


def test_versions_survive_the_round_trip():
    version = ModelVersion("policy", 12, "ab")
    message = convert.model_version_to_proto(version)
    assert (message.name, message.version, message.weights_sha256) == ("policy", 12, "ab")
    assert convert.model_version_from_proto(message) == version


@pytest.mark.parametrize(
    "required", [ModelVersion("sft", 1), ModelVersion("sft", 1, "aa")], ids=["any weights", "these weights"]
)
def test_the_required_version_is_served(required):
    convert.check_required_model(required, ModelVersion("sft", 1, "aa"))


@pytest.mark.parametrize(
    "required",
    [ModelVersion("sft", 2), ModelVersion("policy", 1), ModelVersion("sft", 1, "bb"), ModelVersion("", 0)],
)
def test_any_other_version_is_refused(required):
    with pytest.raises(FailedPreconditionError) as raised:
        convert.check_required_model(required, ModelVersion("sft", 1, "aa"))
    assert raised.value.reason == "MODEL_VERSION_MISMATCH"
    assert raised.value.metadata["served"] == "sft/1"
