"""On a GPU: scores, log-probabilities, gradients and samples are those of the CPU, up to rounding."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from andon.modeling.forward import final_scores, response_statistics
from andon.modeling.loading import (
    load_causal_lm,
    load_scorer,
    new_causal_lm,
    save_model,
    scorer_from_causal_lm,
)
from andon.modeling.sequences import PromptGroup, pack
from andon.modeling.text import TextCodec, word_level_codec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]

ARCHITECTURES = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 256},
    "llama": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
}
# Of the largest value. bfloat16 has 8 bits for it, which layers and sums widen.
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}


@pytest.fixture
def codec() -> TextCodec:
    return word_level_codec([f"w{number}" for number in range(60)])


@pytest.fixture(params=ARCHITECTURES)
def models(request: pytest.FixtureRequest, codec: TextCodec, tmp_path: Path) -> Path:
    save_model(new_causal_lm(ARCHITECTURES[request.param], codec, 0), codec, tmp_path / "lm")
    save_model(scorer_from_causal_lm(tmp_path / "lm", seed=1), codec, tmp_path / "scorer")
    return tmp_path


def groups() -> list[PromptGroup]:
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> Sequence[int]:
        return torch.randint(4, 64, (count,), generator=generator).tolist()

    return [PromptGroup(ids(count), [ids(5), ids(count // 4 + 1), ids(9)]) for count in (7, 40, 90)]


def require_close(on_gpu: Tensor, on_cpu: Tensor, dtype: str) -> None:
    scale = float(on_cpu.abs().max())
    assert float((on_gpu.cpu().float() - on_cpu).abs().max()) <= TOLERANCES[dtype] * scale


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_scores(models: Path, dtype: str) -> None:
    with torch.inference_mode():
        on_cpu = final_scores(load_scorer(models / "scorer"), pack(groups()))
        scorer = load_scorer(models / "scorer", dtype=dtype, device="cuda")
        require_close(final_scores(scorer, pack(groups(), "cuda")), on_cpu, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_log_probabilities(models: Path, dtype: str) -> None:
    with torch.inference_mode():
        on_cpu = response_statistics(load_causal_lm(models / "lm"), pack(groups()), temperature=0.7)
        model = load_causal_lm(models / "lm", dtype=dtype, device="cuda")
        on_gpu = response_statistics(model, pack(groups(), "cuda"), temperature=0.7)
    require_close(on_gpu.logprobs, on_cpu.logprobs, dtype)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_gradients(models: Path, precision: str) -> None:
    """Of weights in float32; bfloat16 is the trainer's autocast."""

    def gradients(device: str) -> dict[str, Tensor]:
        model = load_causal_lm(models / "lm", device=device)
        with torch.autocast(
            "cuda", dtype=torch.bfloat16, enabled=device == "cuda" and precision == "bfloat16"
        ):
            statistics = response_statistics(model, pack(groups(), device), temperature=0.7)
        statistics.logprobs.mean().backward()  # type: ignore[no-untyped-call]
        return {
            name: parameter.grad.cpu()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }

    on_cpu, on_gpu = gradients("cpu"), gradients("cuda")
    assert on_cpu.keys() == on_gpu.keys()
    largest = max(float(gradient.abs().max()) for gradient in on_cpu.values())
    for name, gradient in on_cpu.items():
        assert float((on_gpu[name] - gradient).abs().max()) <= TOLERANCES[precision] * largest, name
