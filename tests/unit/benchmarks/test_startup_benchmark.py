"""What is timed at a start is timed, and a command that fails is no measurement."""

import json
import sys

import pytest

from benchmarks import startup


def test_the_first_run_is_a_warm_up_and_medians_are_reported() -> None:
    runs = iter([(9.0, 9.0), (0.3, 0.1), (0.1, 0.2), (0.2, 0.6)])
    wait = startup.median_of(lambda: next(runs), repetitions=3)
    assert (wait.seconds, wait.low, wait.high, wait.cpu_seconds) == (0.2, 0.1, 0.3, 0.2)


def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(startup.CommandFailedError, match="no such thing"):
        startup.time_command([sys.executable, "-c", "raise SystemExit('no such thing')"], {})


@pytest.mark.slow
def test_every_command_and_every_service_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    startup.main(["--shape", "nano", "--repetitions", "1", "--starts", "1"])
    line = capsys.readouterr().out.splitlines()[-1]
    facts = json.loads(line.removeprefix("JSON "))
    expected = {f"{service} service" for service in startup.SERVICES} | set(startup.commands())
    assert set(facts["seconds"]) == set(facts["cpu_s"]) == expected
    assert min(facts["seconds"].values()) > 0
