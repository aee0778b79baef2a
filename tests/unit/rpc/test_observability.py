"""Log lines and the metrics port."""

import json
import logging
import urllib.request

import pytest
import structlog
from prometheus_client import CollectorRegistry

from andon import __version__
from andon.observability.exporter import register_process_metrics, start_metrics_server
from andon.observability.logs import configure_logging


def lines_of(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_json_with_event_fields_service_and_context(logging_restored, capsys):
    configure_logging("INFO", "json", service="reward")
    structlog.contextvars.bind_contextvars(request_id="r-1")
    structlog.stdlib.get_logger("somewhere").info("model_loaded", model="reward/3", text="two\nlines")
    (line,) = lines_of(capsys)
    assert line.pop("time").endswith("Z")
    assert line == {
        "event": "model_loaded",
        "level": "info",
        "service": "reward",
        "request_id": "r-1",
        "model": "reward/3",
        "text": "two\nlines",
    }


def test_lines_of_other_libraries_look_the_same(logging_restored, capsys):
    configure_logging("INFO", "json", service="reward")
    logging.getLogger("library").warning("%d things", 3)
    (line,) = lines_of(capsys)
    assert (line["event"], line["level"], line["service"]) == ("3 things", "warning", "reward")


def test_lines_under_the_level_stay_out_and_errors_carry_their_traceback(logging_restored, capsys):
    configure_logging("WARNING", "json", service="reward")
    log = structlog.stdlib.get_logger("somewhere")
    log.info("unseen")
    try:
        raise KeyError("the cause")
    except KeyError:
        log.exception("seen")
    (line,) = lines_of(capsys)
    assert line["event"] == "seen"
    assert "KeyError: 'the cause'" in line["exception"]


def test_lines_for_people_are_no_json(logging_restored, capsys):
    configure_logging("INFO", "console", service="reward")
    structlog.stdlib.get_logger("somewhere").info("model_loaded", model="reward/3")
    told = capsys.readouterr().err
    assert "model_loaded" in told
    assert "reward/3" in told


def test_the_port_serves_the_given_registry_and_is_free_after_close():
    registry = CollectorRegistry()
    register_process_metrics(registry, service="reward")
    server = start_metrics_server(registry, "127.0.0.1", 0)
    try:
        page = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10).read().decode()
        with pytest.raises(OSError, match="in use"):
            start_metrics_server(CollectorRegistry(), "127.0.0.1", server.port)
    finally:
        server.close()
    assert f'service_name="reward",version="{__version__}"' in page
    assert "process_resident_memory_bytes" in page
    start_metrics_server(registry, "127.0.0.1", server.port).close()
