"""The model's thread: one version per call, updates between calls, cancellation, failures.

A replacement of the model that waits for a signal holds the thread, so that tests decide what is queued when.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import PreTrainedModel

from andon.errors import AndonError
from andon.modeling.loading import new_causal_lm
from andon.modeling.text import TextCodec
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import load_weights, model_weights
from services.policy.call import CallOutcome, SampleCall
from services.policy.errors import QueueFullError, ShuttingDownError
from services.policy.metrics import PolicyMetrics
from services.policy.runner import RunnerSettings, SamplingRunner
from services.policy.served_model import ServedModel, serve_model

from .conftest import ARCHITECTURES, VERSION, make_call, make_engine, random_prompts, sample_all

NEXT = ModelVersion("policy", 2, "1" * 64)
TIMEOUT_S = 60

Load = Callable[[str], PreTrainedModel]


class Bench:
    """A running runner, and a gate before its thread."""

    def __init__(self, served: ServedModel, *, running_sequences: int = 64, waiting_calls: int = 20) -> None:
        self.registry = CollectorRegistry()
        self.runner = SamplingRunner(
            RunnerSettings(
                running_sequences=running_sequences,
                cache_bytes=1 << 24,
                waiting_calls=waiting_calls,
                max_new_tokens=40,
                max_stop_tokens=4,
                prefill_tokens=64,
            ),
            PolicyMetrics(self.registry),
        )
        self.served = served
        self.runner.start()
        self.runner.replace(lambda _: served).result(TIMEOUT_S)

    def hold(self) -> Callable[[], None]:
        """Keep the thread busy until the returned function is called."""
        reached, released = threading.Event(), threading.Event()

        def wait(active: ServedModel | None) -> ServedModel:
            reached.set()
            assert released.wait(TIMEOUT_S)
            assert active is not None
            return active

        self.runner.replace(wait)
        assert reached.wait(TIMEOUT_S)
        return released.set

    def submit(
        self, lengths: tuple[int, ...] = (5, 9), *, required: ModelVersion | None = None, **parameters: object
    ) -> tuple[int, Future[CallOutcome]]:
        call = self.make(lengths, required=required, **parameters)
        return call.call_id, self.runner.submit(call)

    def make(
        self, lengths: tuple[int, ...], *, required: ModelVersion | None = None, **parameters: object
    ) -> SampleCall:
        return make_call(
            random_prompts(lengths, seed=1),
            call_id=self.runner.next_id(),
            required_model=required,
            tokenizer_fingerprint=self.served.codec.fingerprint,
            **parameters,  # type: ignore[arg-type]
        )

    def update(self, weights: dict[str, torch.Tensor], version: ModelVersion) -> Future[ServedModel]:
        def apply(active: ServedModel | None) -> ServedModel:
            assert active is not None
            load_weights(active.model, weights)
            return active.with_version(version)

        return self.runner.replace(apply)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def bench(load: Load, codec: TextCodec) -> Iterator[Callable[..., Bench]]:
    """Makes a bench around a fresh tiny GPT-2 and closes it."""
    opened: list[Bench] = []

    def make(**settings: int) -> Bench:
        opened.append(Bench(serve_model(load("gpt2"), codec=codec, version=VERSION), **settings))
        return opened[-1]

    yield make
    for each in opened:
        each.runner.close()


@pytest.fixture(scope="module")
def other_weights(codec: TextCodec) -> dict[str, torch.Tensor]:
    """Weights of the same shapes."""
    return model_weights(new_causal_lm(ARCHITECTURES["gpt2"], codec, seed=99))


def tokens_of(outcome: CallOutcome) -> list[list[int]]:
    return [sequence.token_ids.tolist() for sequence in outcome.sequences]


def test_outcomes_are_those_of_the_engine(bench: Callable[..., Bench], load: Load) -> None:
    stand = bench()
    call = stand.make((5, 30, 9), samples_per_prompt=2)
    outcome = stand.runner.submit(call).result(TIMEOUT_S)
    expected = sample_all(make_engine(load("gpt2"), end_token_id=stand.served.codec.eos_token_id), call)
    assert tokens_of(outcome) == [sequence.token_ids.tolist() for sequence in expected]
    assert outcome.model == VERSION
    assert len(outcome.first_token_s) == 3
    assert outcome.compute_s >= max(outcome.first_token_s) >= 0


def test_a_call_larger_than_the_room_is_served_in_parts(bench: Callable[..., Bench]) -> None:
    lengths = tuple(3 + index % 9 for index in range(50))
    small, large = bench(running_sequences=8), bench(running_sequences=64)
    outcomes = [stand.submit(lengths, max_new_tokens=6)[1].result(TIMEOUT_S) for stand in (small, large)]
    assert tokens_of(outcomes[0]) == tokens_of(outcomes[1])


def test_each_call_is_sampled_by_one_version(
    bench: Callable[..., Bench], other_weights: dict[str, torch.Tensor]
) -> None:
    """Calls before an update end with the old weights, calls behind it get the new ones."""
    stand = bench(running_sequences=4)
    release = stand.hold()
    _, running = stand.submit((5, 9, 4, 7), max_new_tokens=30)
    _, waiting = stand.submit((6, 6), max_new_tokens=30, required=VERSION)
    updated = stand.update(other_weights, NEXT)
    _, later = stand.submit((5, 9, 4, 7), max_new_tokens=30, required=NEXT)
    release()
    assert running.result(TIMEOUT_S).model == VERSION
    assert waiting.result(TIMEOUT_S).model == VERSION
    assert updated.result(TIMEOUT_S).version == NEXT
    assert later.result(TIMEOUT_S).model == NEXT
    assert stand.runner.served is not None
    assert stand.runner.served.version == NEXT
    assert tokens_of(later.result()) != tokens_of(running.result())
    # The call behind the update had the new weights from its first token on, the one before it none of them.
    alone = bench()
    before = alone.submit((5, 9, 4, 7), max_new_tokens=30)[1].result(TIMEOUT_S)
    alone.update(other_weights, NEXT).result(TIMEOUT_S)
    after = alone.submit((5, 9, 4, 7), max_new_tokens=30)[1].result(TIMEOUT_S)
    assert tokens_of(before) == tokens_of(running.result())
    assert tokens_of(after) == tokens_of(later.result())


@pytest.mark.parametrize(
    ("required", "is_served"),
    [
        (VERSION, True),
        (ModelVersion("policy", 1), True),
        (ModelVersion("policy", 2), False),
        (ModelVersion("sft", 1), False),
        (ModelVersion("policy", 1, "f" * 64), False),
    ],
)
def test_a_required_version_is_that_or_nothing(
    bench: Callable[..., Bench], required: ModelVersion, is_served: bool
) -> None:
    stand = bench()
    _, future = stand.submit(required=required)
    if is_served:
        assert future.result(TIMEOUT_S).model == VERSION
        return
    with pytest.raises(AndonError) as refused:
        future.result(TIMEOUT_S)
    assert (refused.value.code, refused.value.reason) == ("FAILED_PRECONDITION", "MODEL_VERSION_MISMATCH")
    assert stand.submit()[1].result(TIMEOUT_S).model == VERSION


def test_a_replacement_that_fails_changes_nothing(
    bench: Callable[..., Bench], other_weights: dict[str, torch.Tensor]
) -> None:
    stand = bench()
    before = tokens_of(stand.submit()[1].result(TIMEOUT_S))
    unfitting = dict(other_weights)
    unfitting.popitem()
    with pytest.raises(AndonError) as refused:
        stand.update(unfitting, NEXT).result(TIMEOUT_S)
    assert refused.value.reason == "WEIGHTS_SHAPE_MISMATCH"
    outcome = stand.submit()[1].result(TIMEOUT_S)
    assert outcome.model == VERSION
    assert tokens_of(outcome) == before


def test_a_replacement_whose_sender_has_gone_is_not_carried_out(
    bench: Callable[..., Bench], other_weights: dict[str, torch.Tensor]
) -> None:
    stand = bench()
    before = tokens_of(stand.submit()[1].result(TIMEOUT_S))
    release = stand.hold()
    assert stand.update(other_weights, NEXT).cancel()
    release()
    outcome = stand.submit()[1].result(TIMEOUT_S)
    assert outcome.model == VERSION
    assert tokens_of(outcome) == before


def test_another_model_fails_waiting_calls_that_it_cannot_serve(
    bench: Callable[..., Bench], codec: TextCodec
) -> None:
    stand = bench()
    release = stand.hold()
    short = new_causal_lm({**ARCHITECTURES["llama"], "max_position_embeddings": 20}, codec, seed=1)
    swapped = stand.runner.replace(lambda _: serve_model(short, codec=codec, version=NEXT))
    _, fitting = stand.submit((5, 4))
    _, too_long = stand.submit((5, 30))
    release()
    swapped.result(TIMEOUT_S)
    assert fitting.result(TIMEOUT_S).model == NEXT
    with pytest.raises(AndonError) as refused:
        too_long.result(TIMEOUT_S)
    assert refused.value.reason == "MODEL_VERSION_MISMATCH"


def test_cancelled_calls_free_their_room(bench: Callable[..., Bench]) -> None:
    stand = bench(running_sequences=4)
    in_second_pass, go_on = threading.Event(), threading.Event()
    passes: list[object] = []

    def pause(*_: object) -> None:
        passes.append(None)
        if len(passes) == 2:
            in_second_pass.set()
            assert go_on.wait(TIMEOUT_S)

    head = stand.served.model.get_output_embeddings()
    assert head is not None
    head.register_forward_hook(pause)
    begun_id, begun = stand.submit((5,) * 4, max_new_tokens=40)
    waiting_id, waiting = stand.submit((5,) * 4, max_new_tokens=40)
    _, kept = stand.submit((6,) * 4, max_new_tokens=5)
    assert in_second_pass.wait(TIMEOUT_S)
    for call_id in (waiting_id, begun_id, begun_id):  # twice is no matter
        stand.runner.cancel(call_id)
    go_on.set()
    assert len(kept.result(TIMEOUT_S).sequences) == 4
    assert stand.runner.pending() == []
    assert not begun.done()
    assert not waiting.done()
    assert len(passes) <= 2 + 5  # nothing was computed for the call that was waiting
    stand.runner.close()
    assert stand.value("andon_policy_waiting_calls") == 0
    assert stand.value("andon_policy_running_sequences") == 0
    assert stand.value("andon_policy_cancelled_calls_total") == 2


def test_a_full_queue_refuses_and_recovers(bench: Callable[..., Bench]) -> None:
    stand = bench(waiting_calls=2)
    release = stand.hold()
    accepted = [stand.submit()[1] for _ in range(2)]
    with pytest.raises(QueueFullError):
        stand.submit()
    assert stand.value("andon_policy_rejected_calls_total") == 1
    release()
    for future in accepted:
        future.result(TIMEOUT_S)
    stand.submit()[1].result(TIMEOUT_S)


def test_a_model_that_fails_is_survived(bench: Callable[..., Bench]) -> None:
    stand = bench()
    head = stand.served.model.get_output_embeddings()
    assert head is not None
    hook = head.register_forward_hook(_raise)
    with pytest.raises(AndonError) as failed:
        stand.submit()[1].result(TIMEOUT_S)
    assert (failed.value.code, failed.value.reason) == ("INTERNAL", "SAMPLING_FAILED")
    hook.remove()
    assert len(stand.submit()[1].result(TIMEOUT_S).sequences) == 2
    assert stand.value("andon_policy_failed_calls_total") == 1


def _raise(*_: object) -> None:
    raise RuntimeError("out of memory")


def test_logits_that_are_not_numbers_fail_their_call_only(bench: Callable[..., Bench]) -> None:
    stand = bench()
    bad = stand.make((5, 5), samples_per_prompt=2)
    head = stand.served.model.get_output_embeddings()
    assert head is not None
    hook = head.register_forward_hook(lambda _module, _inputs, output: output * torch.nan)
    with pytest.raises(AndonError) as failed:
        stand.runner.submit(bad).result(TIMEOUT_S)
    assert failed.value.reason == "LOGITS_NOT_FINITE"
    hook.remove()
    stand.submit()[1].result(TIMEOUT_S)
    stand.runner.close()
    assert stand.value("andon_policy_running_sequences") == 0


def test_closing_tells_whoever_waits(bench: Callable[..., Bench]) -> None:
    stand = bench()
    release = stand.hold()
    _, waiting = stand.submit()
    closer = threading.Thread(target=stand.runner.close)
    closer.start()
    release()
    closer.join(TIMEOUT_S)
    assert isinstance(waiting.exception(TIMEOUT_S), ShuttingDownError) or waiting.result()
    with pytest.raises(ShuttingDownError):
        stand.submit()


def test_metrics_count_what_was_done(bench: Callable[..., Bench]) -> None:
    stand = bench()
    outcome = stand.submit((5, 9), samples_per_prompt=3, max_new_tokens=4)[1].result(TIMEOUT_S)
    stand.runner.close()  # what is counted after an answer has been counted now
    lengths = [len(sequence.token_ids) for sequence in outcome.sequences]
    assert stand.value("andon_policy_prompt_tokens_total") == 14
    assert stand.value("andon_policy_generated_tokens_total") == sum(lengths)
    assert stand.value("andon_policy_response_tokens_count") == 6
    assert stand.value("andon_policy_response_tokens_sum") == sum(lengths)
    reasons = [sequence.finish_reason.value for sequence in outcome.sequences]
    for reason in ("eos", "stop", "length"):
        assert stand.value("andon_policy_finished_samples_total", reason=reason) == reasons.count(reason)
    assert stand.value("andon_policy_queue_seconds_count") == 1
    assert stand.value("andon_policy_time_to_first_token_seconds_count") == 2
    assert stand.value("andon_policy_inter_token_seconds_count") == max(lengths) - 1
    assert stand.value("andon_policy_call_seconds_count") == 1
    assert stand.value("andon_policy_running_sequences") == 0
    assert stand.value("andon_policy_cache_usage_ratio") == 0
