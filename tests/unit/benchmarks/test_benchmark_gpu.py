"""The benchmark of a GPU runs on the CPU, at sizes where only the paths are tested."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from benchmarks import gpu
from benchmarks.documents import begin_mark
from benchmarks.flops import TreeSizes
from benchmarks.gpu import Device
from benchmarks.gpu_models import ARCHITECTURES, Cost, store_models
from benchmarks.gpu_place import NANO, Place, Way, Work

WORKS = {
    *(f"reward scores, {summaries} per document" for summaries in (1, 4, 9)),
    "log-probabilities of responses",
    *("sampling, 4 prompts x 1", "sampling, 1 prompts x 4"),
    *(f"reward-model training, rankings of {summaries}" for summaries in (2, 4, 9)),
    *("PPO update, 1 per prompt", "PPO update, 4 per prompt"),
}


@pytest.mark.parametrize("shape", ["nano", "nano-llama"])
def test_every_work_runs_on_the_cpu_and_is_written_down(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "DOCUMENT", tmp_path / "performance.md")
    gpu.DOCUMENT.write_text(f"{begin_mark('gpu')}\n<!-- end -->\n")
    assert gpu.main(["--device", "cpu", "--shape", shape, "--rounds", "1"]) == 0
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["machine"]["hardware"]
    rows = written["rows"]
    assert {row["work"] for row in rows} == WORKS
    assert {row["peer"] for row in rows if "sampling" in row["work"]} == {
        "transformers generate",
        "generate, static cache",
        "continuous batching",
    }
    assert all(row["tokens_per_s"] > 0 and row["flop_utilisation"] >= 0 for row in rows)
    assert all(row["ratio"] > 0 for row in rows if row["peer"] != gpu.NO_TRL)
    assert gpu.DOCUMENT.read_text().count(shape) == len(rows)


@pytest.mark.parametrize("shape", ["nano", "nano-llama"])
def test_the_cost_of_a_pass_is_what_torch_counts(shape: str, tmp_path: Path) -> None:
    """Torch counts every pair of tokens in attention, ours those of which one sees the other."""
    stored = store_models(ARCHITECTURES[shape], tmp_path)
    model = AutoModelForCausalLM.from_pretrained(stored.lm, attn_implementation="eager").eval()
    length = 12
    cost = Cost.of(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(4, 4 + length)[None], use_cache=False)
    trees = [TreeSizes(prompt=length - 5, responses=[5])]
    all_pairs = 4 * cost.attention_width * length**2
    causal_pairs = 4 * cost.attention_width * length * (length + 1) / 2
    head_of_prompt = 2 * cost.head_weights * (length - 5)
    counted = cost.of_trees(trees, logits=True) - causal_pairs + all_pairs + head_of_prompt
    # Rotary positions multiply small matrices, which torch counts and we do not.
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_peers_read_a_document_once_for_each_summary() -> None:
    cost = Cost(layer_weights=1, attention_width=0, head_weights=0)
    trees = [TreeSizes(prompt=10, responses=[2, 3])]
    assert cost.of_trees(trees, logits=False) == 2 * 15
    assert cost.of_sequences(trees, logits=False) == 2 * 25


class FakeDevice(Device):
    """Of which every run takes as long as it says."""

    def timed(self, work):  # type: ignore[no-untyped-def]
        return gpu.Timed(seconds=work(), extra_mib=None)


def test_ratios_are_taken_per_round_and_the_first_is_a_warm_up(tmp_path: Path) -> None:
    ours, theirs = iter([9.0, 1.0, 2.0, 1.0]), iter([9.0, 4.0, 4.0, 1.0])
    work = Work(
        ours=Way(run=lambda: next(ours), flops=50.0, tokens=30.0),
        peers={"p": Way(run=lambda: next(theirs), flops=100.0, tokens=30.0)},
    )
    architecture = ARCHITECTURES["nano"]
    place = Place(
        architecture=architecture,
        stored=store_models(architecture, tmp_path),
        size=NANO,
        device="cpu",
        dtype="float32",
    )
    (row,) = gpu.rows_of("w", work, place, "nano", FakeDevice("cpu"), rounds=3, peak=100.0)
    assert (row.ratio, row.low, row.high) == (2.0, 1.0, 4.0)
    assert (row.seconds, row.tokens_per_s, row.flop_utilisation) == (1.0, 30.0, 0.5)
    assert (row.peer_seconds, row.peer_flop_utilisation) == (4.0, 0.25)


def test_a_peer_without_enough_memory_is_named(tmp_path: Path) -> None:
    def too_much() -> None:
        raise torch.OutOfMemoryError

    architecture = ARCHITECTURES["nano"]
    stored = store_models(architecture, tmp_path)
    work = Work(
        ours=Way(run=lambda: 1.0, flops=50.0, tokens=30.0),
        peers={"p": Way(run=too_much, flops=100.0, tokens=30.0)},
    )
    place = Place(architecture=architecture, stored=stored, size=NANO, device="cpu", dtype="float32")
    (row,) = gpu.rows_of("w", work, place, "nano", FakeDevice("cpu"), rounds=2, peak=100.0)
    assert (row.peer, row.ratio, row.peer_seconds, row.seconds) == ("p: out of memory", None, None, 1.0)
    assert "p: out of memory" in gpu.table([row])


def test_rankings_have_as_many_responses_as_are_asked_for(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["nano"]
    stored = store_models(architecture, tmp_path)
    place = Place(architecture=architecture, stored=stored, size=NANO, device="cpu", dtype="float32")
    groups = place.groups(2, 3)
    assert [len(group.responses) for group in groups] == [3, 3]
    assert {len(response) for group in groups for response in group.responses} == {NANO.response}
    texts = [tuple(response) for group in groups for response in group.responses]
    assert all(one != other for one, other in itertools.combinations(texts, 2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "toaster"], "--device toaster"),
        (["--only", "baking"], "no work's name contains 'baking'"),
        (["--rounds", "0"], "at least one round"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(flags)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
