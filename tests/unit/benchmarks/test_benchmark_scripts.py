"""Our side of the benchmarks runs, on models so small that only the paths are tested."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import limits, reward_training, sampling, scoring, shapes, weights
from benchmarks.contests import CONTESTS
from benchmarks.memory import extra_bytes

ROOT = Path(__file__).parents[3]
NANO = ("--shape", "nano", "--repetitions", "1")
FEW = ("--documents", "4", "--batch", "2", "--median", "20", "--response", "8")


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
        (reward_training.main, (*FEW, "--median-step")),
        (reward_training.main, (*FEW, "--summaries", "4")),
    ],
)
def test_a_script_prints_a_rate_and_what_is_needed(
    main: Callable[[Sequence[str]], None], flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*NANO, *flags])
    facts = line_of(capsys.readouterr().out)
    assert facts["rate"] > 0
    assert facts["cpu_s"] > 0
    assert all(need["flops"] > 0 for need in facts["needs"])


def test_a_ranking_counts_for_all_its_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    reward_training.main([*NANO, *FEW, "--summaries", "4"])
    facts = line_of(capsys.readouterr().out)
    assert facts["steps"] == 2  # of the second epoch
    assert facts["rate"] * facts["cpu_s"] == pytest.approx(4 * 6, rel=0.05)


def test_memory_of_log_probabilities_is_what_the_pass_holds(capsys: pytest.CaptureFixture[str]) -> None:
    scoring.main([*NANO, "--documents", "3", "--part", "logprob", "--memory"])
    facts = line_of(capsys.readouterr().out)
    assert facts["extra_bytes"] > 0
    assert "rate" not in facts


def test_extra_memory_counts_what_was_held_and_given_back() -> None:
    size = 64 * 1024 * 1024
    assert extra_bytes(lambda: b"x" * size) == pytest.approx(size, rel=0.1)
    assert extra_bytes(lambda: None) < size / 10


def test_the_machines_limits_are_rates(capsys: pytest.CaptureFixture[str]) -> None:
    limits.main(["--matrix-size", "64", "--memory-bytes", str(1 << 20)])
    facts = line_of(capsys.readouterr().out)
    assert facts["flops_per_s"] > 0
    assert facts["bytes_per_s"] > 0


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


SHORT = ("--batch", "4", "--shortest", "6", "--longest", "12", "--new", "4")


def facts_of_process(module: str, *flags: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", module, *NANO, *SHORT, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return line_of(done.stdout)


@pytest.mark.slow
def test_a_ppo_update_counts_all_four_processes() -> None:
    facts = facts_of_process("benchmarks.ppo_update", "--epochs", "1")
    assert set(facts["cpu_s_by_process"]) == {"trainer", "policy", "reference", "reward"}
    assert facts["cpu_s"] == pytest.approx(sum(facts["cpu_s_by_process"].values()), abs=0.01)
    assert facts["sampler_logprob_max_error"] < 1e-4
    assert facts["rate"] * facts["cpu_s"] == pytest.approx(4, rel=0.05)


@pytest.mark.slow
def test_several_samples_per_prompt_are_as_many_episodes() -> None:
    facts = facts_of_process("benchmarks.ppo_update", "--epochs", "1", "--samples", "2")
    assert facts["rate"] * facts["cpu_s"] == pytest.approx(4, rel=0.05)


@pytest.mark.slow
def test_memory_of_an_update_is_that_of_all_four_processes() -> None:
    facts = facts_of_process("benchmarks.ppo_update", "--epochs", "1", "--memory")
    by_process = facts["over_weights_bytes_by_process"]
    assert set(by_process) == {"trainer", "policy", "reference", "reward"}
    assert facts["over_weights_bytes"] == sum(by_process.values())
    assert by_process["trainer"] > 0


@pytest.mark.slow
def test_the_services_answer_as_their_engines_do_in_process() -> None:
    facts = facts_of_process("benchmarks.service_overhead")  # ends with an error where they do not
    assert facts["served_cpu_s"] > 0
    assert facts["in_process_cpu_s"] > 0


OWN_COMMANDS = sorted({command for contest in CONTESTS for command in contest.ours.values()})
IN_THIS_PROCESS = {
    "benchmarks.scoring": scoring.main,
    "benchmarks.sampling": sampling.main,
    "benchmarks.reward_training": reward_training.main,
}


@pytest.mark.parametrize(
    "command", [command for command in OWN_COMMANDS if command[0] in IN_THIS_PROCESS], ids=" ".join
)
def test_every_command_of_the_contests_is_understood(
    command: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    module, *flags = command
    IN_THIS_PROCESS[module]([*flags, *NANO])  # the last shape counts
    facts = line_of(capsys.readouterr().out)
    assert facts["extra_bytes" if "--memory" in flags else "rate"] > 0


def test_every_script_of_ours_exists() -> None:
    commands = [command for contest in CONTESTS for command in (contest.theirs, *contest.ours.values())]
    modules = [command[0] for command in commands if not command[0].endswith(".py")]
    assert all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module in modules)


def test_a_work_of_a_shape_stands_against_one_script() -> None:
    works = [(contest.shape, work) for contest in CONTESTS for work in contest.ours]
    assert len(works) == len(set(works))


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
