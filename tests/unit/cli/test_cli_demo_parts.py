"""The demo's corpus, tasks, memory and recipes."""

import json
from pathlib import Path

import pytest

from andon.cli.demo_corpus import builtin_corpus, corpus_of_documents
from andon.cli.demo_state import open_state
from andon.cli.demo_tasks import build_tasks
from andon.cli.recipes import CorpusRecipe, LabelingRecipe, packaged_recipe, read_recipe, with_beta
from andon.client.policy import PromptSamples, Sample
from andon.corpus.builtin.judge import GoldJudge
from andon.corpus.loaders import load_documents
from andon.errors import InvalidArgumentError
from andon.modeling.versions import ModelVersion

SIZES = CorpusRecipe(sft=12, validation=4, labeled=6, prompts=5, reward_test=4, test=7)


def sample_of(text: str) -> Sample:
    return Sample(
        token_ids=(),
        text=text,
        logprobs=(),
        finish_reason="eos",
        model=ModelVersion("sft", 1),
        first_token_s=0,
    )


def write_documents(path: Path, count: int, *, start: int = 0) -> None:
    rows = [{"document": f"document {n}", "summaries": [f"summary {n}"]} for n in range(start, start + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_parts_of_the_builtin_corpus_share_no_post() -> None:
    corpus = builtin_corpus(SIZES, seed=5)
    parts = [
        corpus.sft,
        corpus.validation,
        corpus.labeled,
        corpus.prompts,
        corpus.reward_test,
        corpus.test,
    ]
    assert [len(part) for part in parts] == [12, 4, 6, 5, 4, 7]
    documents = [record.document for part in parts for record in part]
    assert len(set(documents)) == len(documents)
    assert corpus.test == builtin_corpus(SIZES, seed=5).test
    assert corpus.test != builtin_corpus(SIZES, seed=6).test
    posts = corpus.posts_of(corpus.test)
    assert posts is not None
    assert [post.document for post in posts] == [record.document for record in corpus.test]


def test_what_is_written_is_what_the_trainer_reads(tmp_path: Path) -> None:
    corpus = builtin_corpus(SIZES, seed=5)
    files = corpus.write(tmp_path)
    assert tuple(load_documents(str(files["sft"]))) == corpus.sft
    assert tuple(load_documents(str(files["prompts"]))) == corpus.prompts


def test_the_splits_of_a_source_are_kept_and_repeats_stay_out_of_training(tmp_path: Path) -> None:
    write_documents(tmp_path / "train.jsonl", 30)
    write_documents(tmp_path / "dev.jsonl", 20, start=25)  # five of them are in train too
    corpus = corpus_of_documents(str(tmp_path), SIZES)
    held_out = {record.document for record in (*corpus.validation, *corpus.reward_test, *corpus.test)}
    trained = {record.document for record in (*corpus.sft, *corpus.labeled, *corpus.prompts)}
    assert held_out <= {f"document {n}" for n in range(25, 45)}
    assert trained <= {f"document {n}" for n in range(25)}
    assert len(held_out) == 4 + 4 + 7
    assert corpus.posts is None
    assert any("ROUGE-L" in note for note in corpus.notes)


def test_a_single_file_is_split_the_same_way_every_time(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    write_documents(path, 120)
    first, second = (corpus_of_documents(str(path), SIZES) for _ in range(2))
    assert first.test == second.test
    trained = {record.document for record in (*first.sft, *first.labeled, *first.prompts)}
    assert not trained & {record.document for record in (*first.validation, *first.reward_test, *first.test)}


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    write_documents(path, 5)
    with pytest.raises(InvalidArgumentError) as caught:
        corpus_of_documents(str(path), SIZES)
    assert caught.value.reason == "TOO_FEW_DOCUMENTS"


def test_tasks_hold_samples_and_copies_with_one_fault() -> None:
    corpus = builtin_corpus(SIZES, seed=5)
    references = [record.summaries[0] for record in corpus.labeled]
    samples = [
        PromptSamples(prompt_token_ids=(), samples=(sample_of(text), sample_of(text), sample_of("  ")))
        for text in references
    ]
    recipe = LabelingRecipe(edits=(("swap",), ("ramble",)))
    tasks = build_tasks(corpus, corpus.labeled, samples, recipe, overlap=3, seed=1, with_edits=True)
    judge = GoldJudge()
    by_id = {record.document_id: record for record in corpus.labeled}
    assert tasks
    for task in tasks:
        original, *copies = task.candidates  # the second sample is the same text, the third is empty
        assert (original.source, original.policy_version) == ("policy", "sft/1")
        assert 1 <= len(copies) <= 2
        assert {copy.source for copy in copies} == {"edit"}
        (post,) = corpus.posts_of([by_id[task.document_id]]) or []
        assert all(judge.prefer(post, original.text, copy.text) == 1.0 for copy in copies)
        assert task.overlap == 3
    assert build_tasks(corpus, corpus.labeled, samples, recipe, overlap=3, seed=1, with_edits=False) == []


def test_an_unfinished_demo_goes_on_and_a_finished_one_stays(tmp_path: Path) -> None:
    state, begun = open_state(tmp_path, {"seed": 1})
    assert not begun
    state.seconds["sft"] = 3.5
    state.results["submitted labels"] = "9"
    state.save()
    again, begun = open_state(tmp_path, {"seed": 1})
    assert begun
    assert again == state
    other, begun = open_state(tmp_path, {"seed": 2})
    assert not begun
    assert other.demo_id != state.demo_id
    other.finished = True
    other.save()
    after, begun = open_state(tmp_path, {"seed": 2})
    assert not begun
    assert after.demo_id != other.demo_id


def test_a_damaged_memory_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"demo_id": ')
    assert open_state(tmp_path, {})[1] is False


@pytest.mark.parametrize("name", ["builtin", "small", "documents", "documents-small"])
def test_packaged_recipes_are_whole(name: str) -> None:
    recipe = packaged_recipe(name)
    assert recipe.ppo["max_new_tokens"] <= recipe.sft["max_summary_tokens"]
    assert recipe.corpus.test >= 2


def test_the_demo_is_judged_on_enough_posts() -> None:
    assert packaged_recipe("builtin").corpus.test >= 500


def test_a_recipe_with_an_unknown_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("title: x\ncorpora: {}\n")
    with pytest.raises(InvalidArgumentError, match=r"mine\.yaml"):
        read_recipe(path)


def test_beta_is_put_over_the_recipe_and_zero_brings_its_own_settings() -> None:
    recipe = packaged_recipe("builtin")
    gentle = with_beta(recipe, 0.3)
    assert gentle.ppo == {**recipe.ppo, "kl": {"kind": "fixed", "beta": 0.3}}
    free = with_beta(recipe, 0)
    assert free.ppo["kl"] == {"kind": "fixed", "beta": 0}
    assert free.ppo["learning_rate"] == recipe.ppo_without_penalty["learning_rate"]
    assert recipe.ppo["kl"]["beta"] > 0
