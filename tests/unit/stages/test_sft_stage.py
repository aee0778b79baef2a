"""The supervised stage, with real tiny models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from andon.errors import InvalidArgumentError
from andon.modeling.text import TextCodec
from services.trainer.errors import InvalidConfigError
from services.trainer.stages.context import RunInterrupted
from services.trainer.stages.errors import DataChangedError
from services.trainer.stages.sft import SftConfig, SftStage

from .conftest import TINY_GPT2, FakeContext, write_rows


def sft_config(source: str, **changes: Any) -> SftConfig:
    values: dict[str, Any] = {
        "data": source,
        "architecture": TINY_GPT2,
        "tokenizer": {"kind": "words"},
        "steps": 12,
        "batch_tokens": 200,
        "token_budget": 90,
        "learning_rate": 3e-2,
        "warmup_steps": 2,
        "validation_interval": 5,
        **changes,
    }
    return SftConfig(**values)


def test_the_loss_falls_and_the_model_is_stored_with_its_origin(
    context: FakeContext, documents_source: str
) -> None:
    config = sft_config(documents_source, steps=60, validation_data=documents_source, alias="demo")
    version = SftStage(config, context).run()

    assert context.models == [version]
    assert [report.step for report in context.reports] == list(range(1, 61))
    assert {report.total for report in context.reports} == {60}
    losses = [report.metrics["loss_nats_per_token"] for report in context.reports]
    assert losses[0] == pytest.approx(math.log(30), rel=0.25)  # about uniform over some thirty words
    assert losses[-1] < 0.5 * losses[0]
    validated = [report.step for report in context.reports if report.phase == "validate"]
    assert validated == list(range(5, 61, 5))
    assert context.reports[0].metrics["learning_rate"] == 0.0  # warm-up
    assert context.reports[2].metrics["learning_rate"] == pytest.approx(3e-2)

    stored = context.store.resolve("sft@demo")
    assert stored.version == version
    draft = stored.manifest.draft
    assert draft.kind == "causal_lm"
    assert draft.run_id == "run-1"
    assert draft.step == 60
    assert draft.metrics["validation_loss_nats_per_token"] == pytest.approx(
        context.reports[-1].metrics["validation_loss_nats_per_token"]
    )
    (use,) = draft.data
    assert (use.kind, use.uri, use.count) == ("documents", documents_source, 40)
    assert (use.first_id, use.last_id, len(use.sha256)) == ("post-0", "post-39", 64)
    assert draft.config["learning_rate"] == 3e-2
    context.store.verify(stored)


def test_the_loss_is_plain_transformers_loss_on_summary_tokens_only(
    context: FakeContext, documents_source: str
) -> None:
    version = SftStage(sft_config(documents_source, validation_data=documents_source), context).run()
    folder = context.store.resolve(version).path
    model = AutoModelForCausalLM.from_pretrained(folder)
    codec = TextCodec.load(folder)
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == codec.eos_token_id
    nats = tokens = 0.0
    for line in Path(documents_source).read_text().splitlines():
        row = json.loads(line)
        prompt, summary = codec.encode_document(row["document"]), codec.encode_summary(row["summaries"][0])
        ids = torch.tensor([prompt + summary])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        for place, token in enumerate(summary, len(prompt)):
            nats -= float(logprobs[place - 1, token])
            tokens += 1
    reported = context.reports[-1].metrics["validation_loss_nats_per_token"]
    assert reported == pytest.approx(nats / tokens, abs=1e-4)


def test_pieces_of_a_batch_give_the_gradient_of_the_whole(
    context: FakeContext, documents_source: str
) -> None:
    # Without dropout the size of a forward pass must not matter.
    calm = {**TINY_GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    weights = []
    for token_budget in (30, 10_000):
        config = sft_config(documents_source, steps=4, token_budget=token_budget, architecture=calm)
        version = SftStage(config, context).run()
        weights.append(load_file(context.store.resolve(version).path / "model.safetensors"))
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("step", [7, 12])
def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(
    context: FakeContext, documents_source: str, step: int
) -> None:
    config = sft_config(documents_source, validation_data=documents_source)
    whole = SftStage(config, context).run()
    cut_off = FakeContext(context.store, run_id="run-2", interrupt_at=step)
    with pytest.raises(RunInterrupted):
        SftStage(config, cut_off).run()
    torch.rand(100)  # another process has another random state
    continued = cut_off.continued()
    resumed = SftStage(config, continued).run()
    assert [report.step for report in continued.reports] == list(range(step + 1, 13))
    assert resumed.weights_sha256 == whole.weights_sha256
    expected = context.store.resolve(whole).manifest.draft.metrics
    actual = context.store.resolve(resumed).manifest.draft.metrics
    for name in ("loss_nats_per_token", "validation_loss_nats_per_token", "gradient_norm"):
        assert actual[name] == expected[name]


def test_a_run_that_was_cut_off_after_storing_stores_nothing_more(
    context: FakeContext, documents_source: str
) -> None:
    config = sft_config(documents_source, steps=2)
    context.interrupt_at = 2
    with pytest.raises(RunInterrupted):
        SftStage(config, context).run()
    first = SftStage(config, context.continued()).run()
    again = context.continued()
    assert SftStage(config, again).run() == first
    assert again.models == [first]
    assert len(context.store.list("sft")) == 1


def test_changed_data_cannot_be_continued(context: FakeContext, documents_source: str) -> None:
    config = sft_config(documents_source)
    context.interrupt_at = 3
    with pytest.raises(RunInterrupted):
        SftStage(config, context).run()
    path = Path(documents_source)
    path.write_text(path.read_text().replace("yesterday", "today"))
    with pytest.raises(DataChangedError) as caught:
        SftStage(config, context.continued()).run()
    assert caught.value.reason == "DATA_CHANGED"


def test_a_second_run_starts_from_the_first_ones_model(context: FakeContext, documents_source: str) -> None:
    first = SftStage(sft_config(documents_source, steps=30), context).run()
    config = SftConfig(
        data=documents_source,
        base_model="sft@latest",
        steps=1,
        learning_rate=1e-9,
        batch_tokens=10_000,
    )
    later = FakeContext(context.store, run_id="run-2")
    second = SftStage(config, later).run()
    (parent,) = context.store.resolve(second).manifest.draft.parents
    assert (parent.role, parent.model) == ("base", first)
    assert later.reports[0].metrics["loss_nats_per_token"] < 2.0
    fingerprints = {TextCodec.load(context.store.resolve(name).path).fingerprint for name in (first, second)}
    assert len(fingerprints) == 1


def test_byte_pairs_and_a_template_of_ones_own(context: FakeContext, documents_source: str) -> None:
    config = sft_config(
        documents_source,
        steps=1,
        tokenizer={"kind": "bpe", "vocab_size": 300},
        template={"template": "Post: {document}\nShort:", "max_document_tokens": 20},
    )
    codec = TextCodec.load(context.store.resolve(SftStage(config, context).run()).path)
    assert codec.decode(codec.encode_summary("green dog")) == "green dog"
    long_prompt = codec.tokenizer.decode(codec.encode_document("dog " * 50))
    assert long_prompt.startswith("Post: dog")
    assert long_prompt.endswith("\nShort:")
    assert len(codec.encode_document("dog " * 50)) < 20 + 30


def test_long_and_missing_summaries_are_counted(context: FakeContext, tmp_path: Path) -> None:
    rows = [
        {"document": "a b c", "summary": "a"},
        {"document": "d e f", "summary": "a b c d e f a b c d e f"},
        {"document": "g h i", "summaries": []},
    ]
    source = write_rows(tmp_path / "few.jsonl", rows)
    stored = context.store.resolve(SftStage(sft_config(source, steps=1, max_summary_tokens=6), context).run())
    assert stored.manifest.draft.metrics["summaries"] == 1
    assert stored.manifest.draft.metrics["summaries_left_out"] == 1
    source = write_rows(tmp_path / "none.jsonl", rows[1:])
    with pytest.raises(InvalidConfigError) as caught:
        SftStage(sft_config(source, steps=1, max_summary_tokens=6), context).run()
    assert caught.value.field == "data"


def test_documents_beyond_the_models_reach_are_refused(context: FakeContext, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "long.jsonl", [{"document": "word " * 100, "summary": "word"}])
    with pytest.raises(InvalidArgumentError) as caught:
        SftStage(sft_config(source), context).run()
    assert caught.value.reason == "SEQUENCE_TOO_LONG"
    config = sft_config(source, template={"max_document_tokens": 40}, steps=1)
    assert SftStage(config, context).run().version == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"steps": 3, "epochs": 1}, "not both"),
        ({"base_model": "sft/1"}, "either base_model or architecture"),
        ({"architecture": None}, "either base_model or architecture"),
        ({"architecture": None, "base_model": "sft/1"}, "brings its own"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"unknown": 1}, "Extra inputs"),
        ({"schedule": "exponential"}, "'constant', 'linear' or 'cosine'"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        sft_config("somewhere", **changes)


def test_defaults_are_one_epoch() -> None:
    config = SftConfig(data="x", base_model="sft/1")
    assert (config.steps, config.epochs, config.schedule) == (None, None, "cosine")
