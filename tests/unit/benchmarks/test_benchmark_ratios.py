"""The ratios that ``benchmarks.run`` prints, from made-up lines of scripts."""

import sys
from pathlib import Path

import pytest

from benchmarks import run
from benchmarks.contests import CONTESTS, Contest, Peer
from benchmarks.run import Round, Row, ScriptFailedError

CONTEST = Contest(
    peer_command=("peer.py",),
    peer_bench="theirs",
    peers=(
        Peer(name="slow", rate=lambda facts: float(facts["results"]["slow"]), bar=3.0),
        Peer(name="fast", rate=lambda facts: float(facts["results"]["fast"]), bar=None),
    ),
    ours={"work": ("ours.py",)},
)


def played(ours: float, slow: float, fast: float) -> Round:
    return Round(theirs={"results": {"slow": slow, "fast": fast}}, ours={"work": {"rate": ours}})


def test_ratios_are_taken_per_round_and_summarised_by_median_and_range() -> None:
    # Ratios 4, 2 and 10 against the slow peer; 2, 1 and 2.5 against the fast one. The machine's speed drifts.
    rounds = [played(40, 10, 20), played(40, 20, 40), played(50, 5, 20)]
    assert run.rows_of(CONTEST, rounds) == [
        Row(work="work", peer="slow", ratio=4.0, low=2.0, high=10.0, bar=3.0),
        Row(work="work", peer="fast", ratio=2.0, low=1.0, high=2.5, bar=None),
    ]


def test_the_wanted_line_is_found_among_others() -> None:
    output = 'a warning\nJSON {"bench": "other", "x": 1}\nJSON {"bench": "theirs", "x": 2}\n'
    assert run.facts_of(output, "theirs") == {"bench": "theirs", "x": 2}
    assert run.facts_of(output, None) == {"bench": "other", "x": 1}
    assert run.facts_of(output, "absent") is None


def test_every_peers_rate_is_read_from_lines_as_their_scripts_print_them() -> None:
    lines = {
        "hf_score": '{"results": {"padded": {"per_cpu_s": 10.9}, "sorted": {"per_cpu_s": 14.9}}}',
        "hf_logprob": '{"results": {"trl_way": {"seqs_per_cpu_s": 5}, '
        '"logits_to_keep": {"seqs_per_cpu_s": 9}}}',
        "hf_generate": '{"results": {"dyn": {"tok_s_cpu": 309}, "static": {"tok_s_cpu": 397}}}',
        "trl_reward": '{"pairs_per_cpu_s": 4.0}',
        "trl_ppo": '{"episodes_per_cpu_s": 0.8}',
    }
    rates = {}
    for contest in CONTESTS:
        facts = run.facts_of(f"JSON {lines[contest.peer_bench]}", None)
        assert facts is not None
        rates |= {peer.name: peer.rate(facts) for peer in contest.peers}
    assert list(rates.values()) == [10.9, 14.9, 5.0, 9.0, 309.0, 397.0, 4.0, 0.8]


def test_the_table_says_which_bars_are_missed() -> None:
    rows = [
        Row(work="a", peer="p", ratio=3.0, low=2.5, high=3.2, bar=3.0),
        Row(work="b", peer="p", ratio=1.2, low=1.1, high=1.4, bar=1.3),
        Row(work="c", peer="p", ratio=0.9, low=0.8, high=1.0, bar=None),
    ]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.table(rows).splitlines()]
    assert cells[2:] == [
        ["a", "p", "3.00", "2.50 to 3.20", "3.0 reached"],
        ["b", "p", "1.20", "1.10 to 1.40", "1.3 MISSED"],
        ["c", "p", "0.90", "0.80 to 1.00", ""],
    ]


def test_a_script_that_fails_is_named_with_its_errors() -> None:
    with pytest.raises(ScriptFailedError, match=r"gave no result \(exit code 3\):\nno such model"):
        run.run_script(
            [sys.executable, "-c", "import sys; print('no such model', file=sys.stderr); sys.exit(3)"],
            Path.cwd(),
            None,
        )


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
