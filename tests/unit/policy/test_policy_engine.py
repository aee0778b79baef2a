"""The engine against plain transformers: tokens, log-probabilities, and what else runs beside a call."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from structlog.testing import capture_logs
from transformers import PreTrainedModel

from andon.modeling import varlen_attention
from andon.modeling.text import TextCodec
from andon.modeling.varlen_attention import Kernel
from services.policy import prefill_layout
from services.policy.call import FinishedSequence, FinishReason
from tests.varlen_kernel import varlen_by_loops

from .conftest import Steps, cohort_of, make_call, make_engine, random_prompts, run_to_end, sample_all

pytestmark = pytest.mark.usefixtures("steps")

RAGGED = (5, 17, 1, 17, 30, 9)

Load = Callable[[str], PreTrainedModel]


def generate(model: PreTrainedModel, prompt: list[int], *, new: int, eos: int | None = None) -> list[int]:
    """What transformers' own greedy search writes after one prompt."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )
    written: list[int] = output[0, len(prompt) :].tolist()
    return written


@torch.inference_mode()
def forward_logprobs(
    model: PreTrainedModel, prompt: list[int], response: list[int], *, temperature: float
) -> np.ndarray:
    """Log-probabilities of a response by one plain forward pass over prompt and response."""
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return logprobs.gather(1, torch.tensor(response)[:, None])[:, 0].numpy()


def tokens_of(sequences: list[FinishedSequence]) -> list[list[int]]:
    return [sequence.token_ids.tolist() for sequence in sequences]


def test_greedy_tokens_are_those_of_generate(architecture: str, load: Load, load_plain: Load) -> None:
    prompts = random_prompts(RAGGED, seed=1)
    sequences = sample_all(
        make_engine(load(architecture)), make_call(prompts, temperature=0, max_new_tokens=14)
    )
    plain = load_plain(architecture)
    assert tokens_of(sequences) == [generate(plain, prompt, new=14) for prompt in prompts]
    assert {sequence.finish_reason for sequence in sequences} == {FinishReason.LENGTH}


def test_greedy_search_ends_where_generate_ends(architecture: str, load: Load, load_plain: Load) -> None:
    """Sequences leave at different steps; the others must not notice."""
    prompts = random_prompts((3, 8, 8, 20, 6, 6, 2), seed=2)
    plain = load_plain(architecture)
    without_end = [token for prompt in prompts for token in generate(plain, prompt, new=15)[3:10]]
    eos = max(set(without_end), key=without_end.count)
    sequences = sample_all(
        make_engine(load(architecture), end_token_id=eos),
        make_call(prompts, temperature=0, max_new_tokens=15),
    )
    expected = [generate(plain, prompt, new=15, eos=eos) for prompt in prompts]
    assert len({len(tokens) for tokens in expected}) > 1
    assert tokens_of(sequences) == expected
    for sequence, tokens in zip(sequences, expected, strict=True):
        ended = tokens[-1] == eos
        assert sequence.finish_reason == (FinishReason.EOS if ended else FinishReason.LENGTH)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_a_plain_forward_pass(
    architecture: str, load: Load, load_plain: Load, temperature: float
) -> None:
    prompts = random_prompts(RAGGED, seed=3)
    call = make_call(prompts, samples_per_prompt=3, temperature=temperature, max_new_tokens=12, seed=5)
    sequences = sample_all(make_engine(load(architecture)), call)
    plain = load_plain(architecture)
    assert len(sequences) == 3 * len(prompts)
    for index, sequence in enumerate(sequences):
        expected = forward_logprobs(
            plain, prompts[index // 3], sequence.token_ids.tolist(), temperature=temperature
        )
        np.testing.assert_allclose(sequence.logprobs, expected, atol=1e-4)


def test_logprobs_hold_when_lanes_and_prompts_leave(load: Load, load_plain: Load) -> None:
    prompts = random_prompts((4, 9, 9, 14, 20, 3), seed=4)
    stop = tuple(range(4, 8))  # some of many tokens, so that samples end all the time
    call = make_call(
        prompts, samples_per_prompt=4, temperature=2.0, max_new_tokens=30, stop_token_ids=stop, seed=6
    )
    sequences = sample_all(make_engine(load("llama")), call)
    assert len({len(sequence.token_ids) for sequence in sequences}) > 5
    plain = load_plain("llama")
    for index, sequence in enumerate(sequences):
        tokens = sequence.token_ids.tolist()
        assert (tokens[-1] in stop) == (sequence.finish_reason == FinishReason.EOS)
        assert not set(tokens[:-1]) & set(stop)
        expected = forward_logprobs(plain, prompts[index // 4], tokens, temperature=2.0)
        np.testing.assert_allclose(sequence.logprobs, expected, atol=1e-4)


def test_samples_follow_the_models_distribution(load: Load, load_plain: Load) -> None:
    prompt = random_prompts((6,), seed=8)[0]
    count = 4000
    engine = make_engine(load("gpt2"), running_sequences=count)
    sequences = sample_all(
        engine, make_call([prompt], samples_per_prompt=count, temperature=10.0, max_new_tokens=1, seed=2)
    )
    with torch.inference_mode():
        logits = load_plain("gpt2")(torch.tensor([prompt])).logits[0, -1].double()
    expected = torch.softmax(logits / 10.0, dim=0).numpy() * count
    observed = np.bincount([int(sequence.token_ids[0]) for sequence in sequences], minlength=len(expected))
    assert expected.min() >= 5  # what the test needs
    assert chisquare(observed, expected).pvalue > 0.01


def test_samples_of_a_prompt_share_its_reading(load: Load) -> None:
    engine = make_engine(load("gpt2"))
    prompts = random_prompts((10, 7), seed=9)
    sample_all(engine, make_call(prompts, samples_per_prompt=5, max_new_tokens=4))
    assert engine.work.prefill_tokens == 17
    assert engine.work.decode_tokens == 2 * 5 * 3  # the first token needs no step, the last is not read


def test_sequences_that_have_ended_cost_nothing(load: Load) -> None:
    engine = make_engine(load("gpt2"))
    call = make_call(
        random_prompts((6, 6, 6), seed=9),
        samples_per_prompt=4,
        temperature=2.0,
        max_new_tokens=20,
        stop_token_ids=(4, 5, 6, 7),
    )
    sequences = sample_all(engine, call)
    assert engine.work.decode_tokens == sum(len(sequence.token_ids) - 1 for sequence in sequences)


def test_a_seed_gives_the_same_tokens_whatever_runs_beside_it(load: Load) -> None:
    model = load("qwen2")
    call = make_call(
        random_prompts((5, 12, 8), seed=10), samples_per_prompt=2, max_new_tokens=15, seed=42, temperature=0.9
    )
    alone = sample_all(make_engine(model), call)
    engine = make_engine(model)
    other = make_call(
        random_prompts((20, 3, 9, 9), seed=11), call_id=2, samples_per_prompt=3, max_new_tokens=20, top_p=0.8
    )
    finished = engine.begin([cohort_of(other)])
    for _ in range(4):
        finished += engine.step()
    finished += engine.begin([cohort_of(call)])
    together = [sequence for sequence in run_to_end(engine, finished) if sequence.call_id == 1]
    assert tokens_of(together) == tokens_of(alone)
    again = sample_all(make_engine(model), call)
    assert tokens_of(again) == tokens_of(alone)
    assert all(
        np.array_equal(first.logprobs, second.logprobs) for first, second in zip(alone, again, strict=True)
    )


def test_samples_of_one_prompt_and_calls_with_other_seeds_differ(load: Load) -> None:
    prompt = random_prompts((5,), seed=12)
    first, second = (
        sample_all(
            make_engine(load("gpt2")),
            make_call(prompt, samples_per_prompt=4, temperature=3.0, max_new_tokens=10, seed=seed),
        )
        for seed in (1, 2)
    )
    assert len({tuple(tokens) for tokens in tokens_of(first) + tokens_of(second)}) == 8


def test_stop_texts_end_a_sample_and_keep_its_tokens(load: Load, codec: TextCodec) -> None:
    model = load("gpt2")
    prompts = random_prompts((5, 9, 7), seed=13)
    free = sample_all(make_engine(model, codec), make_call(prompts, temperature=0, max_new_tokens=12))
    fourth_word = codec.decode(free[1].token_ids[3:4].tolist())
    stopped = sample_all(
        make_engine(model, codec),
        make_call(prompts, temperature=0, max_new_tokens=12, stop_texts=(fourth_word + " ", "absent")),
    )
    for sequence, without_stop in zip(stopped, free, strict=True):
        count = len(sequence.token_ids)
        assert sequence.token_ids.tolist() == without_stop.token_ids[:count].tolist()
        text_before = codec.decode(sequence.token_ids[:-1].tolist())
        found = fourth_word + " " in codec.decode(sequence.token_ids.tolist())
        assert found == (sequence.finish_reason == FinishReason.STOP)
        assert fourth_word + " " not in text_before
    assert stopped[1].finish_reason == FinishReason.STOP


def test_a_single_token_needs_no_step(load: Load) -> None:
    engine = make_engine(load("llama"))
    sequences = sample_all(engine, make_call(random_prompts((4, 4), seed=1), max_new_tokens=1))
    assert [len(sequence.token_ids) for sequence in sequences] == [1, 1]
    assert engine.work.decode_tokens == 0


def test_a_cancelled_call_leaves_the_others_alone(load: Load) -> None:
    model = load("neox")
    kept = make_call(random_prompts((5, 9), seed=14), max_new_tokens=14, seed=3)
    dropped = make_call(
        random_prompts((7, 7, 2), seed=15), call_id=2, max_new_tokens=14, samples_per_prompt=2
    )
    expected = tokens_of(sample_all(make_engine(model), kept))
    engine = make_engine(model, running_sequences=8)
    finished = engine.begin([cohort_of(dropped), cohort_of(kept)])
    finished += engine.step()
    engine.cancel(2)
    assert engine.num_running == 2
    later = make_call(random_prompts((6,) * 6, seed=16), call_id=3, max_new_tokens=3)  # needs the freed slots
    finished += engine.begin([cohort_of(later)])
    sequences = run_to_end(engine, finished)
    assert {sequence.call_id for sequence in sequences} == {1, 3}
    assert tokens_of([sequence for sequence in sequences if sequence.call_id == 1]) == expected


def test_clearing_frees_every_slot(load: Load) -> None:
    engine = make_engine(load("gpt2"), running_sequences=3)
    call = make_call(random_prompts((5, 5, 5), seed=1))
    for _ in range(3):
        engine.begin([cohort_of(call)])
        engine.clear()
        assert engine.num_running == 0
    assert len(sample_all(engine, call)) == 3


def test_logits_that_are_not_numbers_end_their_sample(load: Load) -> None:
    model = load("gpt2")
    with torch.no_grad():
        model.get_input_embeddings().weight[11] = torch.nan  # also a column of the tied head
    sequences = sample_all(make_engine(model), make_call([[4, 5, 6]], max_new_tokens=5))
    assert [sequence.is_finite for sequence in sequences] == [False]


def test_calls_that_begin_together_survive_endings_at_the_first_token(load: Load) -> None:
    """A sequence that ends while its cohort is read must not take one of the next cohort with it."""
    brief = make_call(random_prompts((6, 6, 6), seed=1), call_id=1, max_new_tokens=1)
    long = make_call(random_prompts((5, 9), seed=2), call_id=2, max_new_tokens=7)
    sequences = sample_all(make_engine(load("llama")), brief, long)
    assert [(sequence.call_id, len(sequence.token_ids)) for sequence in sequences] == [
        (1, 1),
        (1, 1),
        (1, 1),
        (2, 7),
        (2, 7),
    ]


def test_a_step_is_recorded_again_when_prompts_join_or_leave(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[int] = []
    repeated: list[int] = []

    def record(step: Callable[[], None]) -> Callable[[], None]:
        recorded.append(len(repeated))

        def repeat() -> None:
            repeated.append(len(recorded))
            step()

        return repeat

    monkeypatch.setattr(Steps, "record", staticmethod(record))
    engine = make_engine(load("llama"))
    prompts = random_prompts((5, 9, 2), seed=4)
    finished = engine.begin([cohort_of(make_call(prompts, call_id=1, max_new_tokens=30))])
    for _ in range(9):
        finished += engine.step()
    assert repeated == [1] * 9  # one of the nine was launched, and one is ahead
    finished += engine.begin([cohort_of(make_call(prompts, call_id=2, max_new_tokens=12))])
    for _ in range(11):
        finished += engine.step()
    assert len(recorded) == 2
    run_to_end(engine, finished)
    assert len(recorded) == 3  # the second call has left


def test_a_model_whose_step_cannot_be_recorded_is_served(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    def fail(step: Callable[[], None]) -> Callable[[], None]:
        attempts.append(1)
        raise RuntimeError("the step waits for the device")

    call = make_call(random_prompts((5, 9), seed=4), temperature=0, max_new_tokens=12)
    expected = sample_all(make_engine(load("llama")), call)
    monkeypatch.setattr(Steps, "record", staticmethod(fail))
    with capture_logs() as logs:
        assert tokens_of(sample_all(make_engine(load("llama")), call)) == tokens_of(expected)
    assert attempts == [1]
    assert [entry["event"] for entry in logs] == ["step_not_recorded"]


def test_prompts_read_by_a_variable_length_kernel_give_the_same(
    architecture: str, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: all prompts of a pass in one call, whatever their lengths."""
    prompts = random_prompts(RAGGED, seed=6)
    call = make_call(prompts, samples_per_prompt=2, temperature=0.8, max_new_tokens=10)
    expected = sample_all(make_engine(load(architecture)), call)
    kernel = Kernel(function=varlen_by_loops, shares_keys=True)
    monkeypatch.setattr(varlen_attention, "_torch_kernel", lambda: kernel)
    monkeypatch.setattr(prefill_layout, "can_attend", lambda query, call: True)
    sampled = sample_all(make_engine(load(architecture)), call)
    assert tokens_of(sampled) == tokens_of(expected)
    for ours, theirs in zip(sampled, expected, strict=True):
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
