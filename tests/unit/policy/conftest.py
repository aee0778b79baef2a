"""Tiny models of several architectures, and calls for them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from andon.modeling.loading import load_causal_lm, new_causal_lm, save_model
from andon.modeling.text import TextCodec, word_level_codec
from andon.modeling.versions import ModelVersion
from services.policy.call import FinishedSequence, SampleCall, SamplingParameters
from services.policy.captured_step import Record
from services.policy.engine import CallRun, Engine, EngineLimits, PromptStart

COMMON = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "max_position_embeddings": 96}
# Large weights, so that the most probable token is clear and depends on everything before it.
ARCHITECTURES = {
    "gpt2": {"model_type": "gpt2", **COMMON, "initializer_range": 0.4},
    "neox": {"model_type": "gpt_neox", **COMMON, "intermediate_size": 64, "initializer_range": 0.2},
    "llama": {
        "model_type": "llama",
        **COMMON,
        "intermediate_size": 64,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    },
    "qwen2": {
        "model_type": "qwen2",
        **COMMON,
        "intermediate_size": 64,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    },
    # Every layer sees seven tokens back only.
    "qwen2-window": {
        "model_type": "qwen2",
        **COMMON,
        "intermediate_size": 64,
        "num_key_value_heads": 1,
        "initializer_range": 0.2,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 0,
    },
}
VERSION = ModelVersion("policy", 1, "0" * 64)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def codec() -> TextCodec:
    return word_level_codec([f"w{index}" for index in range(60)])


@pytest.fixture(scope="session")
def model_folder(codec: TextCodec, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a saved model with random weights, by the name of its architecture."""
    folders: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            save_model(new_causal_lm(ARCHITECTURES[name], codec, seed=7), codec, folders[name])
        return folders[name]

    return folder_of


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    """Each of the architectures in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def load(model_folder: Callable[[str], Path]) -> Callable[[str], PreTrainedModel]:
    """The model as the service loads it."""
    return lambda name: load_causal_lm(model_folder(name))


@pytest.fixture(scope="session")
def load_plain(model_folder: Callable[[str], Path]) -> Callable[[str], PreTrainedModel]:
    """The same weights in plain transformers with its plainest attention."""
    return lambda name: AutoModelForCausalLM.from_pretrained(
        str(model_folder(name)), attn_implementation="eager"
    ).eval()


def make_call(
    prompts: Sequence[Sequence[int]],
    *,
    call_id: int = 1,
    samples_per_prompt: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 8,
    stop_texts: tuple[str, ...] = (),
    stop_token_ids: tuple[int, ...] = (),
    seed: int = 1,
    required_model: ModelVersion | None = None,
    tokenizer_fingerprint: str = "",
) -> SampleCall:
    """A call with everything that a test does not care about filled in."""
    return SampleCall(
        call_id=call_id,
        prompts=tuple(tuple(prompt) for prompt in prompts),
        parameters=SamplingParameters(
            samples_per_prompt=samples_per_prompt,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            stop_texts=stop_texts,
            stop_token_ids=stop_token_ids,
            seed=seed,
        ),
        required_model=required_model,
        tokenizer_fingerprint=tokenizer_fingerprint,
        arrival_s=0.0,
    )


class Steps:
    """How the engines of a test carry out their steps."""

    record: Record | None = None


@pytest.fixture(params=["launched", "repeated"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps kernel by kernel, and as on a GPU; here what repeats a step is the step itself."""
    if request.param == "repeated":
        monkeypatch.setattr(Steps, "record", staticmethod(lambda step: step))


def make_engine(
    model: PreTrainedModel,
    codec: TextCodec | None = None,
    *,
    end_token_id: int | None = None,
    running_sequences: int = 64,
    prefill_tokens: int = 40,
) -> Engine:
    """An engine with room for tests; a small prefill, so that a call needs several passes."""
    return Engine(
        model,
        end_token_id=end_token_id,
        decode=codec.decode if codec is not None else lambda ids: "",
        limits=EngineLimits(
            running_sequences=running_sequences,
            max_new_tokens=40,
            max_stop_tokens=4,
            prefill_tokens=prefill_tokens,
        ),
        record=Steps.record,
    )


def cohort_of(call: SampleCall) -> list[PromptStart]:
    """All prompts of a call as one cohort, longest first."""
    run = CallRun.of(call)
    order = sorted(range(len(call.prompts)), key=lambda index: -len(call.prompts[index]))
    return [PromptStart(run=run, prompt_index=index) for index in order]


def run_to_end(engine: Engine, finished: Sequence[FinishedSequence] = ()) -> list[FinishedSequence]:
    """Step until nothing runs; all finished sequences by call and index."""
    sequences = list(finished)
    while engine.num_running:
        sequences += engine.step()
    return sorted(sequences, key=lambda sequence: (sequence.call_id, sequence.sequence_index))


def sample_all(engine: Engine, *calls: SampleCall) -> list[FinishedSequence]:
    """Begin the calls together and run them to their end."""
    return run_to_end(engine, engine.begin([cohort_of(call) for call in calls]))


def random_prompts(lengths: Sequence[int], *, seed: int, vocab_size: int = 64) -> list[list[int]]:
    """Prompts of these lengths without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, vocab_size, (length,), generator=generator).tolist() for length in lengths]
