"""Continuous batching: decisions in small cases by hand, and invariants under random traffic."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.policy.errors import QueueFullError
from services.policy.scheduler import (
    CallShape,
    CohortPlan,
    Decode,
    Limits,
    Prefill,
    PromptReference,
    ReplaceModel,
    Scheduler,
    Wait,
)


def scheduler(*, sequences: int = 8, tokens: int = 1000, waiting: int = 10) -> Scheduler:
    return Scheduler(limits=Limits(running_sequences=sequences, cache_tokens=tokens, waiting_calls=waiting))


def shape(call_id: int, lengths: list[int], *, samples: int = 1, new: int = 10) -> CallShape:
    return CallShape(call_id=call_id, prompt_tokens=lengths, samples_per_prompt=samples, max_new_tokens=new)


def prompts_of(action: object) -> list[tuple[int, int]]:
    assert isinstance(action, Prefill)
    return [(prompt.call_id, prompt.prompt_index) for plan in action.cohorts for prompt in plan.prompts]


def test_nothing_to_do() -> None:
    assert scheduler().next_action() == Wait()


def test_a_call_is_read_and_then_written_to_its_end() -> None:
    plan = scheduler()
    plan.submit_call(shape(1, [5, 9], samples=2))
    assert plan.next_action() == Prefill(
        cohorts=(
            CohortPlan(prompts=plan_references(1, [(1, 9), (0, 5)]), samples_per_prompt=2, max_new_tokens=10),
        )
    )
    assert plan.running_sequences == 4
    assert plan.reserved_cache_tokens == 5 + 9 + 4 * 9
    for _ in range(2):
        assert plan.next_action() == Decode()
        plan.finish_sequence(1, 0)
    assert plan.reserved_cache_tokens == 9 + 2 * 9
    assert plan.next_action() == Decode()
    plan.finish_sequence(1, 1)
    plan.finish_sequence(1, 1)
    assert plan.next_action() == Wait()
    assert plan.idle
    assert plan.reserved_cache_tokens == 0


def plan_references(call_id: int, prompts: list[tuple[int, int]]) -> tuple[PromptReference, ...]:
    return tuple(
        PromptReference(call_id=call_id, prompt_index=index, num_tokens=tokens) for index, tokens in prompts
    )


def test_a_call_joins_while_another_one_runs() -> None:
    plan = scheduler()
    plan.submit_call(shape(1, [5]))
    plan.next_action()
    plan.submit_call(shape(2, [7]))
    assert prompts_of(plan.next_action()) == [(2, 0)]
    assert plan.next_action() == Decode()


def test_calls_do_not_overtake() -> None:
    plan = scheduler(sequences=4)
    plan.submit_call(shape(1, [5, 5, 5]))
    plan.next_action()
    plan.submit_call(shape(2, [5], samples=2))
    plan.submit_call(shape(3, [5]))  # would fit, but call 2 is before it and does not
    assert plan.next_action() == Decode()
    plan.finish_sequence(1, 0)
    assert prompts_of(plan.next_action()) == [(2, 0)]
    assert plan.next_action() == Decode()


def test_a_large_call_is_admitted_as_room_comes() -> None:
    plan = scheduler(sequences=16)
    plan.submit_call(shape(1, [5] * 40))
    assert len(prompts_of(plan.next_action())) == 16
    plan.finish_sequence(1, 0)
    assert plan.next_action() == Decode()  # one slot is not worth a cohort of its own
    plan.finish_sequence(1, 1)
    assert prompts_of(plan.next_action()) == [(1, 16), (1, 17)]


def test_the_cache_limits_admission() -> None:
    plan = scheduler(tokens=100)
    plan.submit_call(shape(1, [40, 40, 40], new=11))  # 50 tokens each with the response
    assert len(prompts_of(plan.next_action())) == 2
    assert plan.next_action() == Decode()


def test_prompts_of_similar_length_share_a_cohort() -> None:
    plan = scheduler(sequences=100, tokens=100_000)
    plan.submit_call(shape(1, [600, 30, 590, 25, 28, 610]))
    action = plan.next_action()
    assert isinstance(action, Prefill)
    assert [[prompt.num_tokens for prompt in cohort.prompts] for cohort in action.cohorts] == [
        [610, 600, 590],
        [30, 28, 25],
    ]


def test_calls_with_equal_parameters_share_a_cohort() -> None:
    plan = scheduler()
    plan.submit_call(shape(1, [5]))
    plan.submit_call(shape(2, [6]))
    plan.submit_call(shape(3, [7], new=3))
    action = plan.next_action()
    assert isinstance(action, Prefill)
    assert [[prompt.call_id for prompt in cohort.prompts] for cohort in action.cohorts] == [[2, 1], [3]]


def test_a_replacement_waits_for_calls_before_it_and_holds_up_calls_behind_it() -> None:
    plan = scheduler()
    plan.submit_call(shape(1, [5]))
    plan.next_action()
    plan.submit_replacement(77)
    plan.submit_call(shape(2, [5]))
    assert plan.next_action() == Decode()
    plan.finish_sequence(1, 0)
    assert plan.next_action() == ReplaceModel(replacement_id=77)
    assert prompts_of(plan.next_action()) == [(2, 0)]


def test_a_full_queue_refuses() -> None:
    plan = scheduler(sequences=1, waiting=2)
    plan.submit_call(shape(1, [5]))
    plan.next_action()
    plan.submit_call(shape(2, [5]))
    plan.submit_call(shape(3, [5]))
    with pytest.raises(QueueFullError) as refused:
        plan.submit_call(shape(4, [5]))
    assert refused.value.reason == "QUEUE_FULL"
    plan.cancel_call(2)
    plan.submit_call(shape(4, [5]))


def test_cancelling_frees_what_a_call_holds() -> None:
    plan = scheduler(sequences=4)
    plan.submit_call(shape(1, [5] * 6))
    plan.next_action()
    plan.submit_call(shape(2, [5]))
    plan.cancel_call(1)
    assert plan.running_sequences == 0
    assert plan.reserved_cache_tokens == 0
    assert prompts_of(plan.next_action()) == [(2, 0)]
    plan.cancel_call(12345)
    assert plan.running_sequences == 1


def test_room_for_a_prompt_alone() -> None:
    limits = Limits(running_sequences=4, cache_tokens=100, waiting_calls=1)
    assert limits.admits(prompt_tokens=60, samples_per_prompt=4, max_new_tokens=11)
    assert not limits.admits(prompt_tokens=61, samples_per_prompt=4, max_new_tokens=11)
    assert not limits.admits(prompt_tokens=1, samples_per_prompt=5, max_new_tokens=1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_random_traffic_keeps_within_limits_and_ends(seed: int) -> None:
    randomness = random.Random(seed)
    limits = Limits(
        running_sequences=randomness.randint(4, 20),
        cache_tokens=randomness.randint(80, 300),
        waiting_calls=50,
    )
    plan = Scheduler(limits=limits)
    events: list[tuple[str, int]] = []  # begun calls and replacements, in order
    order: list[tuple[str, int]] = []  # the same by arrival
    running: dict[tuple[int, int], int] = {}  # (call, prompt) -> sequences
    shapes: dict[int, CallShape] = {}
    cancelled: set[int] = set()
    to_submit = randomness.randint(1, 12)
    number = 0
    for _ in range(5000):
        if number < to_submit and randomness.random() < 0.3:
            number += 1
            if randomness.random() < 0.2:
                plan.submit_replacement(number)
                order.append(("replacement", number))
            else:
                shapes[number] = shape(
                    number,
                    [randomness.randint(1, 20) for _ in range(randomness.randint(1, 30))],
                    samples=randomness.randint(1, 4),
                    new=randomness.randint(1, 12),
                )
                plan.submit_call(shapes[number])
                order.append(("call", number))
        if shapes and randomness.random() < 0.02:
            victim = randomness.choice(list(shapes))
            plan.cancel_call(victim)
            cancelled.add(victim)
            running = {key: count for key, count in running.items() if key[0] != victim}
        action = plan.next_action()
        if isinstance(action, Prefill):
            for cohort in action.cohorts:
                for prompt in cohort.prompts:
                    key = (prompt.call_id, prompt.prompt_index)
                    assert key not in running
                    assert prompt.num_tokens == shapes[prompt.call_id].prompt_tokens[prompt.prompt_index]
                    running[key] = cohort.samples_per_prompt
                    if ("call", prompt.call_id) not in events:
                        events.append(("call", prompt.call_id))
        elif isinstance(action, ReplaceModel):
            assert not running
            events.append(("replacement", action.replacement_id))
        elif isinstance(action, Decode):
            assert running
            for key in [key for key in running if randomness.random() < 0.3]:
                running[key] -= 1
                plan.finish_sequence(*key)
                if running[key] == 0:
                    del running[key]
        else:
            assert not running
        assert sum(running.values()) == plan.running_sequences <= limits.running_sequences
        assert 0 <= plan.reserved_cache_tokens <= limits.cache_tokens
        if number == to_submit and plan.idle:
            break
    assert plan.idle
    assert plan.reserved_cache_tokens == 0
    assert [event for event in events if event[1] not in cancelled] == [
        event for event in order if event[1] not in cancelled
    ]
