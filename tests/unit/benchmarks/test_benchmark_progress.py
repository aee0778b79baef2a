"""A run of the benchmarks that is cut off keeps what it measured, for the same code alone."""

from pathlib import Path

from benchmarks.progress import Measurement, Progress, digest_of

MEASURED = Measurement(facts={"rate": 2.5}, seconds=3.0)


def test_what_was_measured_is_found_by_the_next_run(tmp_path: Path) -> None:
    first = Progress(tmp_path / "unfinished.json", digest="a")
    first.add(1, "sampling --prompts 8", MEASURED)
    second = Progress(tmp_path / "unfinished.json", digest="a")
    assert second.find(1, "sampling --prompts 8") == MEASURED
    assert second.find(2, "sampling --prompts 8") is None
    assert not second.is_outdated


def test_measurements_of_other_code_do_not_count(tmp_path: Path) -> None:
    Progress(tmp_path / "unfinished.json", digest="a").add(1, "sampling", MEASURED)
    changed = Progress(tmp_path / "unfinished.json", digest="b")
    assert changed.is_outdated
    assert len(changed) == 0


def test_a_finished_run_leaves_nothing_behind(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "unfinished.json", digest="a")
    progress.add(1, "sampling", MEASURED)
    progress.clear()
    assert not list(tmp_path.iterdir())


def test_a_scripts_time_is_the_median_over_rounds(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "unfinished.json", digest="a")
    for number, seconds in enumerate((5.0, 1.0, 3.0), start=1):
        progress.add(number, "sampling", Measurement(facts={}, seconds=seconds))
    assert progress.seconds_by_script() == {"sampling": 3.0}


def test_the_digest_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one")
    first = digest_of([tmp_path])
    (tmp_path / "notes.md").write_text("not read")
    assert digest_of([tmp_path]) == first
    (tmp_path / "a.py").write_text("two")
    second = digest_of([tmp_path])
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, digest_of([tmp_path])}) == 3
