"""The table of all metrics is what the code says, and what it says of stages is in the stages' code."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from scripts import metrics_table
from services.trainer.metrics import TrainerMetrics
from services.trainer.run_records import StageName

TRAINER = Path(metrics_table.ROOT) / "services" / "trainer"


def test_the_page_is_what_the_code_says() -> None:
    assert metrics_table.OUT.read_text() == metrics_table.page(), "make docs-metrics"


def test_every_metric_is_ours_or_the_process_own_and_has_help() -> None:
    for rows in metrics_table.tables().values():
        for row in rows:
            assert row.name.startswith(("andon_", "process_", "python_gc_"))
            assert row.help
            assert row.kind in {"counter", "gauge", "histogram"}
            assert row.kind != "counter" or row.name.endswith("_total")


def test_no_two_metrics_of_a_service_have_one_name() -> None:
    tables = metrics_table.tables()
    for service in metrics_table.SERVICES:
        names = [row.name for row in (*tables["every service"], *tables[service])]
        assert len(names) == len(set(names))


def test_rows_are_what_is_scraped() -> None:
    registry = CollectorRegistry()
    TrainerMetrics(registry).step_done(StageName.PPO, step=1, total=2, metrics={"kl_nats": 0.5})
    scraped = set(re.findall(r"^# HELP (\S+)", generate_latest(registry).decode(), flags=re.MULTILINE))
    listed = {row.name for row in metrics_table.rows_of(registry)}
    # A counter or histogram also says when it was made.
    assert listed == {name for name in scraped if not name.endswith("_created")}
    assert "andon_trainer_ppo_kl_nats" in listed


def test_numbers_of_stages_stand_in_their_code() -> None:
    code = "\n".join(path.read_text() for path in TRAINER.rglob("*.py"))
    numbers = [*metrics_table.ppo_numbers()]
    for of_stage in metrics_table.STAGE_NUMBERS.values():
        numbers += of_stage
    assert len(numbers) > 50
    # Some names are put together from a part of the network, or from what became of a question to people.
    put_together = re.compile(r"(policy|value)_grad_norm|people_\w+")
    stray = [number for number in numbers if not put_together.fullmatch(number) and f'"{number}"' not in code]
    assert stray == []
