"""The ratios that ``benchmarks.run`` prints, and the order of its scripts, from made-up scripts."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import contests, run
from benchmarks.contests import CONTESTS, Contest, Peer, faster
from benchmarks.progress import Progress
from benchmarks.run import Peers, Round, Row, ScriptFailedError, Step

MACHINE = {"flops_per_s": 100.0, "bytes_per_s": 1.0}
CONTEST = Contest(
    theirs=("peer.py",),
    peers=(
        faster("slow", lambda facts: float(facts["results"]["slow"]), 3.0),
        faster("fast", lambda facts: float(facts["results"]["fast"]), None),
    ),
    ours={"work": ("ours",)},
)


def played(ours: float, slow: float, fast: float, *, cpu_s: float = 6.0) -> Round:
    needs = [{"flops": 200.0, "read_bytes": 0.0}]
    return Round(
        theirs={"results": {"slow": slow, "fast": fast}},
        ours={"work": {"rate": ours, "cpu_s": cpu_s, "needs": needs}},
        machine=MACHINE,
    )


def test_ratios_are_taken_per_round_and_summarised_by_median_and_range() -> None:
    # Ratios 4, 2 and 10 against the slow peer; 2, 1 and 2.5 against the fast one. The machine's speed drifts.
    rounds = [played(40, 10, 20), played(40, 20, 40, cpu_s=8.0), played(50, 5, 20, cpu_s=20.0)]
    common: dict[str, Any] = {"work": "work", "shape": "tiny", "times_limit": 4.0}  # 2 s are the least
    assert run.rows_of(CONTEST, rounds) == [
        Row(peer="slow", ratio=4.0, low=2.0, high=10.0, bar=3.0, **common),
        Row(peer="fast", ratio=2.0, low=1.0, high=2.5, bar=None, **common),
    ]


def test_what_is_no_matter_of_time_has_no_limit() -> None:
    assert run.times_limit({"over_weights_bytes": 5}, MACHINE) is None


def test_the_last_line_is_found_among_others() -> None:
    assert run.facts_of('a warning\nJSON {"x": 1}\nJSON {"x": 2}\nbye\n') == {"x": 2}
    assert run.facts_of("a warning\n") is None


def peer(work: str, name: str, shape: str = "tiny") -> Peer:
    found = [
        peer
        for contest in CONTESTS
        if work in contest.ours and contest.shape == shape
        for peer in contest.peers
        if peer.name == name
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("work", "name", "ours", "theirs", "expected"),
    [
        ("PPO update", "TRL PPOTrainer", {"rate": 1.6}, {"episodes_per_cpu_s": 0.8}, 2.0),
        (
            "reward scores, 4 summaries per document",
            "transformers, sorted by length",
            {"rate": 60.0},
            {"results": {"padded": {"rate": 10.0}, "sorted": {"rate": 15.0}}},
            4.0,
        ),
        ("reward-model training, pairs", "TRL RewardTrainer", {"rate": 9.0}, {"pairs_per_cpu_s": 4.5}, 2.0),
        ("reward-model training, rankings of 9", "TRL RewardTrainer", {"rate": 9.0}, {"rate": 3.0}, 3.0),
        (
            "sampling, 32 prompts",
            "the best way of transformers",
            {"rate": 800.0},
            {"results": {"dyn": {"tok_s_cpu": 300}, "static": {"tok_s_cpu": 400}, "cb": {"tok_s_cpu": 200}}},
            2.0,
        ),
        (
            "memory of log-probabilities over the weights",
            "transformers, TRL's way",
            {"extra_bytes": 50},
            {"results": {"trl_way": {"extra_bytes": 600}}},
            12.0,
        ),
        (
            "memory of a PPO update over the weights",
            "TRL PPOTrainer",
            {"over_weights_bytes": 200},
            {"over_weights_bytes": 500},
            2.5,
        ),
        (
            "weight hand-over over gRPC",
            "gRPC, full copy",
            {"ratios": {"gRPC, full copy": {"waiting_cpu_s": [2.0, 9.0, 4.0], "whole_cpu_s": [1.0]}}},
            {},
            4.0,
        ),
        ("bytes of a delta, learning rate 3e-6", "full copy in bfloat16", {"bytes_of_full": 0.05}, {}, 20.0),
        (
            "PPO update, with its services",
            "the same in one process",
            {"cpu_s": 100.0, "wall_s_by_phase": {"publish_seconds": 1.0}},
            {"calls_overhead_cpu_s": 3.0},
            0.96,
        ),
    ],
)
def test_a_ratio_is_read_from_lines_as_the_scripts_print_them(
    work: str, name: str, ours: dict[str, Any], theirs: dict[str, Any], expected: float
) -> None:
    assert peer(work, name).ratio(ours, theirs) == pytest.approx(expected)


def test_a_way_that_failed_is_not_taken_for_a_slow_one() -> None:
    best = peer("sampling, 32 prompts", "the best way of transformers")
    with pytest.raises(KeyError, match="cb"):
        best.ratio({"rate": 1.0}, {"results": {"dyn": {"tok_s_cpu": 1}, "static": {"tok_s_cpu": 1}}})


def test_both_shapes_play_the_same_contests_for_the_same_bars() -> None:
    def bars(shape: str) -> dict[tuple[str, str], float | None]:
        return {
            (work, peer.name): peer.bar
            for contest in run.choose(CONTESTS, shape=shape, only="")
            for work in contest.ours
            for peer in contest.peers
        }

    assert bars("tiny") == bars("small")


def test_works_are_chosen_by_name_and_shape() -> None:
    chosen = run.choose(CONTESTS, shape="small", only="rankings")
    assert [list(contest.ours) for contest in chosen] == [
        ["reward-model training, rankings of 4"],
        ["reward-model training, rankings of 9"],
    ]
    assert run.choose(CONTESTS, shape=None, only="no such work") == []


def test_a_script_runs_once_per_round_also_where_two_contests_want_it() -> None:
    other = Contest(theirs=("peer.py",), peers=(), ours={"more": ("more",)})
    small = Contest(theirs=("big.py",), peers=(), ours={"large": ("large",)}, shape="small")
    memory = Contest(theirs=("m.py",), peers=(), ours={"bytes": ("m",)}, is_memory=True)
    steps = run.plan([CONTEST, other, small, memory], {"tiny": 2, "small": 1})
    assert [(step.round_number, step.script) for step in steps] == [
        *[(1, script) for script in ("benchmarks.agreement", "benchmarks.limits")],
        *[(1, script) for script in ("peer.py", "ours", "more", "big.py", "large", "m.py", "m")],
        *[(2, script) for script in ("benchmarks.limits", "peer.py", "ours", "more")],
    ]
    assert [step.script for step in steps if step.is_memory] == ["m.py", "m"]


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[[], list[str]]:
    """Carries out three scripts, of which the second fails while there is no file ``mended``."""
    log = tmp_path / "log"
    (tmp_path / "peerlib.py").touch()
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.py").write_text(
            "import pathlib, sys\n"
            f"pathlib.Path({str(log)!r}).open('a').write('{name} ')\n"
            f"if '{name}' == 'two' and not pathlib.Path({str(tmp_path / 'mended')!r}).exists():\n"
            "    sys.exit('not today')\n"
            f"print('JSON {{\"rate\": 1}}')\n"
        )
    steps = [
        Step(round_number=1, command=(f"{name}.py",), is_memory=False) for name in ("one", "two", "three")
    ]

    def carry_out() -> list[str]:
        progress = Progress(tmp_path / "unfinished.json", digest="same")
        run.carry_out(steps, progress, Peers(folder=tmp_path, python=sys.executable))
        return log.read_text().split()

    return carry_out


def test_a_run_that_broke_off_goes_on_where_it_stood(
    fake_run: Callable[[], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ScriptFailedError, match=r"gave no result \(exit code 1\):\nnot today"):
        fake_run()
    (tmp_path / "mended").touch()
    assert fake_run() == ["one", "two", "two", "three"]
    told = capsys.readouterr().err
    assert "1 of 3 scripts have run before" in told
    assert "[3/3, round 1" in told


def test_the_time_left_counts_unknown_scripts_as_average_ones() -> None:
    assert run.time_left(["a", "b", "c"], {"a": 100.0, "b": 200.0}) == ", about 8 min left"
    assert run.time_left(["c"], {}) == ""


def test_the_table_says_which_bars_are_missed() -> None:
    def row(ratio: float, bar: float | None, times_limit: float | None) -> Row:
        return Row(
            work="w", shape="tiny", peer="p", ratio=ratio, low=0.5, high=9, bar=bar, times_limit=times_limit
        )

    rows = [row(3.0, 3.0, 2.25), row(1.2, 1.3, None), row(0.9, None, None)]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.table(rows).splitlines()]
    assert cells[2:] == [
        ["w", "tiny", "p", "3.00", "0.50 to 9.00", "3 reached", "2.2"],
        ["w", "tiny", "p", "1.20", "0.50 to 9.00", "1.3 MISSED", ""],
        ["w", "tiny", "p", "0.90", "0.50 to 9.00", "", ""],
    ]


def test_the_results_are_written_for_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LATEST", tmp_path / "latest.json")
    rows = run.rows_of(CONTEST, [played(40, 10, 20)])
    run.write(rows, rounds={"tiny": 1, "small": 1}, load=0.0, seconds={"ours": 3.21})
    written = json.loads((tmp_path / "latest.json").read_text())
    assert written["rows"][0] == {
        "work": "work",
        "shape": "tiny",
        "peer": "slow",
        "bar": 3.0,
        "times_limit": 3.0,
        "ratio": 4.0,
        "low": 4.0,
        "high": 4.0,
    }
    assert run.seconds_of_latest() == {"ours": 3.2}


def test_a_part_that_was_run_again_stands_among_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(work: str, ratio: float) -> Row:
        return Row(
            work=work,
            shape="tiny",
            peer="p",
            ratio=ratio,
            low=ratio,
            high=ratio,
            bar=None,
            times_limit=None,
        )

    peers = [faster("p", lambda facts: 1.0, None)]
    compared = [Contest(theirs=("peer.py",), peers=peers, ours={work: ()}) for work in ("c", "a", "b")]
    monkeypatch.setattr(run, "CONTESTS", compared)
    monkeypatch.setattr(run, "LATEST", tmp_path / "latest.json")
    assert run.among_others([row("a", 1.0)]) == [row("a", 1.0)]
    former = [row("a", 1.0), row("b", 2.0), row("compared no longer", 5.0)]
    run.write(former, rounds={"tiny": 1}, load=0.0, seconds={})
    assert run.among_others([row("b", 3.0), row("c", 4.0)]) == [row("c", 4.0), row("a", 1.0), row("b", 3.0)]


@pytest.mark.parametrize("python", [None, "/nowhere/bin/python"])
def test_without_the_peers_the_run_says_how_to_get_them(
    python: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "peerlib.py").touch()
    monkeypatch.delenv("PEERS_PYTHON", raising=False)
    flags = [] if python is None else ["--peers-python", python]
    assert run.main(["--peers", str(tmp_path), *flags]) == 2
    errors = capsys.readouterr().err
    assert "PEERS_PYTHON" in errors
    assert f"pip install -r {tmp_path}/requirements-peers.txt" in errors


def test_without_the_peers_scripts_the_run_says_where_it_looked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["--peers", str(tmp_path)]) == 2
    assert f"no peers' scripts in {tmp_path}" in capsys.readouterr().err


def test_no_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--rounds", "0"])
    assert "at least one round" in capsys.readouterr().err


def test_the_share_without_services_counts_calls_and_weights() -> None:
    ours = {"cpu_s": 50.0, "wall_s_by_phase": {"publish_seconds": 0.5}}
    assert contests.without_services(ours, {"calls_overhead_cpu_s": 1.5}) == pytest.approx(0.96)
