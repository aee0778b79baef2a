"""Twenty labelers at once over gRPC and over the pages, on both engines: the benchmark's own checks, which
fail at the first error, doubled assignment, lost answer or wrong number of answers for a task.
"""

import pytest

from benchmarks.labeling_load import OVERLAP, Scene, measure


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_labelers_of_both_kinds_work_off_a_batch(engine: str, request: pytest.FixtureRequest) -> None:
    if engine == "postgresql":
        request.getfixturevalue("postgres_server")  # skips or fails where PostgreSQL is not installed
    rows = measure(Scene(engine=engine, num_labelers=20, num_tasks=100))
    assert [row["labelers"] for row in rows] == ["10 grpc", "10 http"]
    assert sum(int(str(row["items"])) for row in rows) == 100 * OVERLAP
