"""On a GPU: what the sampler writes is what the CPU writes, with steps that are recorded and repeated."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from andon.modeling.forward import response_statistics
from andon.modeling.loading import load_causal_lm, new_causal_lm, save_model
from andon.modeling.sequences import PromptGroup, pack
from andon.modeling.text import word_level_codec
from services.policy.call import FinishedSequence, SampleCall, SamplingParameters
from services.policy.captured_step import GraphRecorder
from services.policy.engine import CallRun, Engine, EngineLimits, PromptStart

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]

COMMON = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "max_position_embeddings": 256}
# Large weights, so that the most probable token is clear and depends on everything before it.
ARCHITECTURES = {
    "gpt2": {"model_type": "gpt2", **COMMON, "initializer_range": 0.4},
    "neox": {"model_type": "gpt_neox", **COMMON, "intermediate_size": 64, "initializer_range": 0.2},
    "qwen2-window": {
        "model_type": "qwen2",
        **COMMON,
        "intermediate_size": 64,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 0,
    },
}
PROMPT_LENGTHS = (40, 31, 31, 17, 17, 9, 5, 1)
NEW = 90  # more than a recorded step can do


@pytest.fixture(params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    codec = word_level_codec([f"w{number}" for number in range(60)])
    save_model(new_causal_lm(ARCHITECTURES[request.param], codec, 7), codec, tmp_path)
    return tmp_path


def prompts() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(3)
    return [tuple(torch.randint(4, 64, (length,), generator=generator).tolist()) for length in PROMPT_LENGTHS]


def sample(
    engine: Engine, *, temperature: float, samples: int = 1, calls: int = 1, steps_between: int = 0
) -> list[FinishedSequence]:
    """Calls with the same prompts, begun one after the other while the earlier ones go on."""
    finished: list[FinishedSequence] = []
    for number in range(calls):
        call = SampleCall(
            call_id=number,
            prompts=tuple(prompts()),
            parameters=SamplingParameters(
                samples_per_prompt=samples,
                temperature=temperature,
                top_p=1.0 if number == 0 else 0.9,
                max_new_tokens=NEW,
                stop_texts=(),
                stop_token_ids=(),
                seed=number,
            ),
            required_model=None,
            tokenizer_fingerprint="",
            arrival_s=0.0,
        )
        run = CallRun.of(call)
        finished += engine.begin([[PromptStart(run=run, prompt_index=i) for i in range(len(call.prompts))]])
        for _ in range(steps_between):
            finished += engine.step()
    while engine.num_running:
        finished += engine.step()
    return sorted(finished, key=lambda sequence: (sequence.call_id, sequence.sequence_index))


def engine_of(
    model: PreTrainedModel, *, record: bool = False, end_token_id: int | None = None
) -> tuple[Engine, list[Callable[[], None]]]:
    """The engine, and the steps that it has recorded so far."""
    recorded: list[Callable[[], None]] = []

    def recorder(step: Callable[[], None]) -> Callable[[], None]:
        recorded.append(GraphRecorder(model.device)(step))
        return recorded[-1]

    engine = Engine(
        model,
        end_token_id=end_token_id,
        decode=lambda ids: "",
        limits=EngineLimits(running_sequences=128, max_new_tokens=NEW, max_stop_tokens=1, prefill_tokens=64),
        record=recorder if record else None,
    )
    return engine, recorded


def tokens_of(sequences: Sequence[FinishedSequence]) -> list[list[int]]:
    return [sequence.token_ids.tolist() for sequence in sequences]


@pytest.mark.parametrize("record", [False, True])
def test_greedy_tokens_are_those_of_the_cpu(folder: Path, record: bool) -> None:
    """Sequences end at different steps; the others must not notice."""
    on_cpu = load_causal_lm(folder)
    written = [token for row in tokens_of(sample(engine_of(on_cpu)[0], temperature=0)) for token in row[5:]]
    end = max(set(written), key=written.count)
    expected = sample(engine_of(on_cpu, end_token_id=end)[0], temperature=0)
    assert len({len(sequence.token_ids) for sequence in expected}) > 1
    engine, recorded = engine_of(load_causal_lm(folder, device="cuda"), record=record, end_token_id=end)
    on_gpu = sample(engine, temperature=0)
    assert tokens_of(on_gpu) == tokens_of(expected)
    for ours, theirs in zip(on_gpu, expected, strict=True):
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-3)
    assert bool(recorded) is record


def test_calls_that_join_are_sampled_as_without_recording(folder: Path) -> None:
    model = load_causal_lm(folder, device="cuda")
    options = {"temperature": 0.8, "samples": 3, "calls": 3, "steps_between": 11}
    expected = sample(engine_of(model)[0], **options)
    engine, recorded = engine_of(model, record=True)
    sampled = sample(engine, **options)
    assert len(recorded) >= 3
    same = [a == b for a, b in zip(tokens_of(sampled), tokens_of(expected), strict=True)]
    # Rounding may move a token at the edge of a share, and with it the rest of its sequence.
    assert np.mean(same) > 0.9


def test_log_probabilities_in_bfloat16_are_those_of_a_pass(folder: Path) -> None:
    model = load_causal_lm(folder, dtype="bfloat16", device="cuda")
    engine, recorded = engine_of(model, record=True)
    sequences = sample(engine, temperature=0.7, samples=2)
    assert recorded
    groups = [
        PromptGroup(list(prompt), [row.token_ids.tolist() for row in sequences[2 * i : 2 * i + 2]])
        for i, prompt in enumerate(prompts())
    ]
    with torch.inference_mode():
        passed = response_statistics(model, pack(groups, "cuda"), temperature=0.7).logprobs.cpu().numpy()
    sampled = np.concatenate([row.logprobs for row in sequences])
    # bfloat16 rounds logits of about 30 to a tenth, in both.
    assert np.median(np.abs(sampled - passed)) < 0.1
    assert np.corrcoef(sampled, passed)[0, 1] > 0.98
