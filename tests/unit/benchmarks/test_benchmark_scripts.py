"""Our side of the benchmarks runs, on models so small that only the paths are tested."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reward_training, sampling, scoring, shapes, weights
from benchmarks.contests import CONTESTS

ROOT = Path(__file__).parents[3]
NANO = ("--shape", "nano", "--repetitions", "1")


def line_of(output: str) -> dict[str, Any]:
    lines = [line for line in output.splitlines() if line.startswith("JSON ")]
    assert len(lines) == 1
    facts: dict[str, Any] = json.loads(lines[0].removeprefix("JSON "))
    return facts


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (scoring.main, ("--documents", "3")),
        (scoring.main, ("--documents", "3", "--summaries", "4")),
        (scoring.main, ("--documents", "3", "--part", "logprob")),
        (reward_training.main, ("--pairs", "4", "--batch", "2", "--median", "20", "--response", "8")),
    ],
)
def test_a_script_prints_a_rate(
    main: Callable[[Sequence[str]], None], flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*NANO, *flags])
    assert line_of(capsys.readouterr().out)["rate"] > 0


@pytest.mark.parametrize(("prompts", "samples"), [(6, 1), (2, 3)])
def test_the_sampler_writes_every_token_it_is_asked_for(
    prompts: int, samples: int, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("--prompts", str(prompts), "--samples", str(samples), "--new", "5")
    sampling.main([*NANO, *size, "--shortest", "4", "--longest", "12"])
    facts = line_of(capsys.readouterr().out)
    assert facts["tokens"] == 30
    assert facts["rate"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["shared", "delta"])
def test_weights_are_handed_over_by_every_way(way: str, capfd: pytest.CaptureFixture[str]) -> None:
    weights.main([*NANO, "--way", way, "--sequences", "2", "--tokens", "16"])
    facts = line_of(capfd.readouterr().out)
    assert facts["rate"] > 0
    assert 0 < facts["changed_share"] < 0.2
    assert facts["bytes_of_full"] == 1 if way == "shared" else facts["bytes_of_full"] < 0.1
    assert all(ratio > 0 for ratios in facts["ratios"].values() for row in ratios.values() for ratio in row)


@pytest.mark.slow
def test_a_ppo_update_counts_all_four_processes() -> None:
    flags = ("--batch", "4", "--epochs", "1", "--shortest", "6", "--longest", "12", "--new", "4")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ppo_update", *NANO, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = line_of(done.stdout)
    assert set(facts["cpu_s_by_process"]) == {"trainer", "policy", "reference", "reward"}
    assert facts["cpu_s"] == pytest.approx(sum(facts["cpu_s_by_process"].values()), abs=0.01)
    assert facts["sampler_logprob_max_error"] < 1e-4


def test_every_work_names_a_script_that_exists() -> None:
    commands = [command for contest in CONTESTS for command in contest.ours.values()]
    assert all((ROOT / f"{command[0].replace('.', '/')}.py").is_file() for command in commands)


def test_fewer_prompts_have_the_spread_of_the_peers_lengths() -> None:
    all_lengths = sorted(map(len, sampling.prompts(32, 128, 512, shapes.SHAPES["tiny"])))
    lengths = sorted(map(len, sampling.prompts(8, 128, 512, shapes.SHAPES["tiny"])))
    assert lengths == all_lengths[2::4]


def test_words_and_tokens_agree_with_the_codec() -> None:
    shape = shapes.SHAPES["nano"]
    codec = shapes.codec(shape)
    words = shapes.prompts(1, 20, 20, shape, seed=3)[0]
    assert codec.vocab_size == shape.vocab_size
    assert codec.encode_document(shapes.text(words))[:-1] == shapes.token_ids(words)
