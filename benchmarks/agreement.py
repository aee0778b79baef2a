"""Checks that ours and the peers compute the same, before anybody asks who is faster; fails loudly where not.

The same random weights and the same tokens go to both sides: scores, log-probabilities, and the gradient of
reward-model training on rankings against TRL's loss over all their pairs. ``benchmarks.run`` calls it first.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from andon.corpus.records import CandidateRecord, ComparisonRecord
from andon.modeling.forward import final_scores, response_statistics
from andon.modeling.loading import load_causal_lm, load_scorer, save_model
from andon.modeling.sequences import PromptGroup, pack
from benchmarks import shapes
from benchmarks.measuring import emit, parser, use_threads
from benchmarks.scoring import TEMPERATURE
from benchmarks.shapes import Shape
from services.trainer.reward_losses import Decision
from services.trainer.stages.comparisons import ComparedDocument
from services.trainer.stages.preference_learning import PreferenceLearning

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-4  # of float32, relative to the largest value
NUM_DOCUMENTS = 6
NUM_SUMMARIES = 4


def task(shape: Shape) -> list[PromptGroup]:
    """Documents of different lengths with ranked summaries of different lengths, the best first."""
    source = random.Random(0)

    def ids(count: int) -> list[int]:
        return shapes.token_ids(shapes.random_words(source, count, shape))

    return [
        PromptGroup(ids(source.randint(5, 60)), [ids(source.randint(2, 20)) for _ in range(NUM_SUMMARIES)])
        for _ in range(NUM_DOCUMENTS)
    ]


def our_results(
    lm: PreTrainedModel, scorer: PreTrainedModel, groups: Sequence[PromptGroup]
) -> dict[str, Tensor]:
    """Under the names that the peers' script gives."""
    batch = pack(groups)
    with torch.inference_mode():
        results = {
            "scores": final_scores(scorer, batch),
            "logprobs": response_statistics(lm, batch, temperature=TEMPERATURE).logprobs,
        }
    # What the documents and summaries say does not matter here: only their tokens are read.
    ranking = tuple((place,) for place in range(NUM_SUMMARIES))
    record = ComparisonRecord(
        document_id="0",
        document="",
        candidates=tuple(CandidateRecord(text=str(place)) for place in range(NUM_SUMMARIES)),
        tiers=ranking,
        comparison_id="0",
    )
    elements = [
        ComparedDocument(
            group=group,
            records=(record,),
            candidate_places=(tuple(range(NUM_SUMMARIES)),),
            decisions=(Decision(tiers=ranking),),
        )
        for group in groups
    ]
    learning = PreferenceLearning(scorer, elements, [], token_budget=10_000, device="cpu")
    learning.accumulate(list(range(len(elements))))
    for name, parameter in scorer.named_parameters():
        assert parameter.grad is not None, name
        results[f"gradient {name}"] = parameter.grad
    return results


def largest_error(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[str, float]:
    """The largest difference, relative to the largest value of its tensor, and which one has it."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"only one side has {sorted(ours.keys() ^ theirs.keys())}")
    largest_gradient = max(float(value.abs().max()) for name, value in theirs.items() if "gradient" in name)
    errors = {}
    for name, value in theirs.items():
        scale = largest_gradient if "gradient" in name else float(value.abs().max())
        errors[name] = float((ours[name] - value).abs().max()) / scale
    worst = max(errors, key=lambda name: errors[name])
    return worst, errors[worst]


def main(argv: Sequence[str] | None = None) -> None:
    """Compare and print; exits with an error where the two differ by more than rounding."""
    flags = parser(__doc__)
    flags.add_argument("--peers-python", default=os.environ.get("PEERS_PYTHON"), help="(PEERS_PYTHON)")
    arguments = flags.parse_args(argv)
    if not arguments.peers_python:
        flags.error("PEERS_PYTHON is not set: whom should ours agree with?")
    use_threads(arguments.threads)
    shape = shapes.SHAPES[arguments.shape]
    codec = shapes.codec(shape)
    groups = task(shape)
    with TemporaryDirectory() as name:
        folder = Path(name)
        save_model(shapes.causal_lm(shape, codec), codec, folder / "lm")
        save_model(shapes.scorer(shape, codec), codec, folder / "scorer")
        content = [
            {"prompt": list(group.prompt), "responses": [list(response) for response in group.responses]}
            for group in groups
        ]
        (folder / "task.json").write_text(json.dumps({"groups": content, "temperature": TEMPERATURE}))
        done = subprocess.run(
            [arguments.peers_python, "-m", "benchmarks.peer_scripts.agreement", str(folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"the peers failed:\n{done.stderr[-3000:]}")
        theirs = load_file(folder / "theirs.safetensors")
        ours = our_results(load_causal_lm(folder / "lm"), load_scorer(folder / "scorer"), groups)
    worst, error = largest_error(ours, theirs)
    if not error <= TOLERANCE:
        raise SystemExit(f"not the same mathematics: {worst} differs by {error:.2g} of its largest value")
    emit(bench="agreement", compared=len(theirs), worst=worst, largest_relative_error=error)


if __name__ == "__main__":
    sys.exit(main())
