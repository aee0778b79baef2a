"""How the benchmark of growth measures its points and shows them, at a size where nothing is fast or slow."""

import sys
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.documents import put_between_marks
from benchmarks.scaling import ALL_SERIES, Series

PROCESSES = [series for series in ALL_SERIES if series.processes]
SMALL = ("--shape", "nano", "--repetitions", "1", "--shortest", "6", "--longest", "12", "--new", "4")
MACHINE = {"flops_per_s": 10.0, "bytes_per_s": 10.0}


@pytest.mark.slow
@pytest.mark.parametrize("series", PROCESSES, ids=lambda series: series.grows)
def test_two_processes_do_the_work_of_one(series: Series) -> None:
    size = ("--prompts", "4") if series.unit == "tokens" else ("--batch", "4")
    facts = scaling.measure(scaling.command_line(series, 2, [*SMALL, *size]))
    assert facts["processes"] == 2
    assert facts["rate"] * facts["wall_s"] == pytest.approx(16 if series.unit == "tokens" else 4, rel=0.05)


def test_torchrun_gets_the_number_of_trainer_processes() -> None:
    (series,) = [series for series in PROCESSES if series.grows == "trainer processes"]
    command = scaling.command_line(series, 2, ["--shape", "nano"])
    assert command[:4] == [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    assert command[4:] == ["--nproc-per-node=2", "-m", "benchmarks.trainer_ranks", "--shape", "nano"]


def test_every_series_grows_and_names_a_script() -> None:
    for series in ALL_SERIES:
        assert sorted(set(series.values)) == list(series.values)
        assert (scaling.ROOT / f"{series.command[0].replace('.', '/')}.py").is_file()


def test_a_point_stands_beside_the_machines_limit() -> None:
    facts = {"rate": 2.0, "cpu_s": 6.0, "needs": [{"flops": 20.0, "read_bytes": 0.0}]}
    measured = scaling.point(ALL_SERIES[0], 4, facts, MACHINE)
    assert measured.times_limit == 3.0
    assert measured.wall_s is None


def test_the_table_has_a_line_per_series() -> None:
    def point(work: str, value: int, **more: float | None) -> dict[str, object]:
        return {"work": work, "grows": "g", "unit": "u", "value": value, "wall_s": None, **more}

    rows = [
        point("a", 1, rate=2.0, times_limit=1.25),
        point("a", 2, rate=1234.5, times_limit=2.0),
        point("b", 1, rate=0.5, times_limit=None, wall_s=2.0),
    ]
    assert scaling.table(rows).splitlines()[2:] == [
        "| a | g | u, of CPU time | 1: 2 (1.2x); 2: 1.23e+03 (2.0x) |",
        "| b | g | u, on the clock | 1: 0.5 |",
    ]


def test_a_failing_script_ends_the_run_with_its_errors() -> None:
    with pytest.raises(SystemExit, match="no such shape"):
        scaling.measure([sys.executable, "-c", "raise SystemExit('no such shape')"])


def test_numbers_go_between_their_marks(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    begin = "<!-- measured: benchmarks/results/scaling.json -->"
    document.write_text(f"before\n{begin}\nold\n<!-- end -->\nafter\n<!-- end -->\n")
    put_between_marks(document, "scaling", "new")
    assert document.read_text() == f"before\n{begin}\nnew\n<!-- end -->\nafter\n<!-- end -->\n"
    with pytest.raises(ValueError, match="no marks"):
        put_between_marks(document, "latest", "new")
