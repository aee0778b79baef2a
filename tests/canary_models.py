"""A store of tiny policies whose quality is known, because they are made from one by shifting its logits.

``policy/1`` is stable and the reference. A linear fit says which words its reward model likes; the better
candidate writes these somewhat more often, the sign-flipped one somewhat less, the over-optimised one hardly
anything else. The equal one differs by a little noise. All write nothing but words, and so responses of one
length.
"""

import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from andon.modeling.loading import new_causal_lm, save_model, scorer_from_causal_lm
from andon.modeling.manifest import ManifestDraft
from andon.modeling.normalization import Normalization
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec, word_level_codec

WORDS = ["the", "cat", "dog", "sat", "ran", "home", "mat", "."]
ARCHITECTURE = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "n_positions": 64,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}
RESPONSE_TOKENS = 8
RESPONSES = 300  # of each document of the fit
STABLE, EQUAL, BETTER, FLIPPED, HACKED = (f"policy/{number}" for number in range(1, 6))
# How far each candidate's logits are shifted towards what the reward model likes.
SHIFTS = {EQUAL: 0.0, BETTER: 1.0, FLIPPED: -1.5, HACKED: 12.0}


def make_documents() -> list[str]:
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=3 + number % 6)) for number in range(40)]


def make_store(root: Path) -> ModelStore:
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _make_store(ModelStore(root))


def _make_store(store: ModelStore) -> ModelStore:
    codec = word_level_codec(WORDS, max_document_tokens=8)
    stable = new_causal_lm(ARCHITECTURE, codec, seed=1)
    only_words = torch.full((stable.config.vocab_size,), -12.0)
    only_words[codec.encode_summary(" ".join(WORDS))[: len(WORDS)]] = 0.0
    shift_logits(stable, only_words)
    publish(store, "sft", stable, codec)
    publish(store, "policy", stable, codec)

    scorer = scorer_from_causal_lm(store.resolve("sft/1").path, seed=2)
    by_document = [
        sample_sequences(stable, torch.tensor(codec.encode_document(document)))
        for document in make_documents()[:12]
    ]
    scores = [raw_scores(scorer, sequences, eos=codec.eos_token_id) for sequences in by_document]
    # Of one document: what documents differ in is nothing that a policy could change.
    gain = 1.0 / torch.stack([raw.std() for raw in scores]).mean().item()
    bias = -gain * torch.cat(scores).mean().item()
    normalization = Normalization(method="policy_unit", gain=gain, bias=bias)
    store.publish(
        "reward",
        lambda folder: save_model(scorer, codec, folder, normalization=normalization),
        manifest=ManifestDraft(kind="reward_model", normalization=normalization),
    )
    liked = words_liked(
        torch.cat([sequences[:, -RESPONSE_TOKENS:] for sequences in by_document]),
        torch.cat([gain * (raw - raw.mean()) for raw in scores]),
        stable.config.vocab_size,
    )
    for shift in SHIFTS.values():
        candidate = deepcopy(stable)
        shift_logits(candidate, shift * liked + 1e-3 * torch.randn(len(liked)))
        publish(store, "policy", candidate, codec)
    return store


def publish(store: ModelStore, family: str, model: Any, codec: TextCodec) -> None:
    store.publish(
        family,
        lambda folder: save_model(model, codec, folder),
        manifest=ManifestDraft(kind="causal_lm"),
    )


@torch.no_grad()
def shift_logits(model: Any, shift: Tensor) -> None:
    """Add ``shift`` [vocabulary] to the logits, by the bias of the last layer norm before the tied head."""
    words = model.transformer.wte.weight  # more dimensions than words, so the equations have a solution
    model.transformer.ln_f.bias += torch.linalg.pinv(words) @ shift


@torch.no_grad()
def sample_sequences(model: Any, prompt: Tensor) -> Tensor:
    """[responses, prompt + response] token ids."""
    model = plain(model)
    sequences = prompt.expand(RESPONSES, -1)
    for _ in range(RESPONSE_TOKENS):
        logits = model(sequences).logits[:, -1]
        drawn = torch.distributions.Categorical(logits=logits).sample()
        sequences = torch.cat((sequences, drawn.unsqueeze(1)), dim=1)
    return sequences


@torch.no_grad()
def raw_scores(scorer: Any, sequences: Tensor, *, eos: int) -> Tensor:
    """What the head says of each text, [sequences]: at the end token, which the service puts after a text."""
    ended = torch.nn.functional.pad(sequences, (0, 1), value=eos)
    scorer = plain(scorer)
    return scorer.score(scorer.base_model(ended).last_hidden_state[:, -1]).squeeze(1)


def plain(model: Any) -> Any:
    """The model as transformers has it, which takes padded batches."""
    model = deepcopy(model)
    model.set_attn_implementation("eager")
    return model.eval()


def words_liked(responses: Tensor, scores: Tensor, vocabulary: int) -> Tensor:
    """What one more of each word adds to the score, [vocabulary], by least squares."""
    counts = torch.stack([(responses == word).sum(dim=1) for word in range(vocabulary)], dim=1).float()
    centred = counts - counts.mean(dim=0)
    return torch.linalg.pinv(centred) @ (scores - scores.mean())
