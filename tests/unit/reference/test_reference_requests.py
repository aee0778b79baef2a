"""Temperatures and metrics of the reference service; other checks are tested with the service itself."""

import math

import pytest
from prometheus_client import CollectorRegistry

from andon.api.reference.v1 import reference_service_pb2 as pb2
from andon.modeling.sequences import PromptGroup
from services.reference.errors import InvalidTemperatureError
from services.reference.metrics import ReferenceMetrics
from services.reference.requests import temperature_of


def test_the_temperature_is_1_when_absent():
    assert temperature_of(pb2.LogProbsRequest()) == 1.0


@pytest.mark.parametrize("temperature", [1e-4, 0.5, 1.0, 1e4])
def test_temperatures_within_the_limits_are_taken(temperature):
    assert temperature_of(pb2.LogProbsRequest(temperature=temperature)) == temperature


@pytest.mark.parametrize("temperature", [0.0, -0.5, 9e-5, 1.1e4, math.nan, math.inf, -math.inf])
def test_other_temperatures_are_refused_with_the_limits(temperature):
    with pytest.raises(InvalidTemperatureError) as raised:
        temperature_of(pb2.LogProbsRequest(temperature=temperature))
    assert raised.value.reason == "INVALID_TEMPERATURE"
    assert raised.value.metadata["lowest"] == "0.0001"
    assert raised.value.metadata["highest"] == "10000.0"


def test_tokens_are_counted_with_each_prompt_once():
    registry = CollectorRegistry()
    ReferenceMetrics(registry).answered([PromptGroup([1, 2, 3], [[4], [5, 6]]), PromptGroup([7], [[8, 9]])])
    assert registry.get_sample_value("andon_reference_tokens_total", {"part": "prompt"}) == 4
    assert registry.get_sample_value("andon_reference_tokens_total", {"part": "response"}) == 5
    assert registry.get_sample_value("andon_reference_responses_total") == 3
    assert registry.get_sample_value("andon_reference_call_tokens_sum") == 9
