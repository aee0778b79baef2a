"""The whole loop, with labels that were given through the labeling site's pages alone."""

import os
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from andon.cli import demo_flow
from andon.cli.demo_flow import DemoFlow, DemoRequest
from andon.cli.demo_report import measure
from andon.cli.demo_state import open_state
from andon.cli.recipes import packaged_recipe
from andon.client.labeling import LabelingClient
from andon.modeling.store import ModelStore
from tests.page_labelers import in_place_of_grpc

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def test_a_reward_model_learns_from_labels_given_through_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ANDON_RECIPE=builtin runs it at the demo's own size, where the accuracy means something."""
    name = os.environ.get("ANDON_RECIPE", "small")
    request = DemoRequest(out=tmp_path, seed=0, data=None, recipe=packaged_recipe(name))
    state, _ = open_state(tmp_path, {})
    with DemoFlow(request, state, Console(file=StringIO())) as flow:
        ports = flow.supervisor.ports["labeling"]
        monkeypatch.setattr(
            demo_flow, "label_batch", in_place_of_grpc(lambda: f"http://127.0.0.1:{ports.web}")
        )
        outcome = flow.run()
        with LabelingClient(
            flow.supervisor.targets["labeling"], token=flow.supervisor.tokens.admin
        ) as labeling:
            answers = list(labeling.export_comparisons())
            progress = labeling.progress()
        report, _ = measure(flow, outcome)
    assert answers
    assert {answer.origin for answer in answers} == {"site"}
    assert progress.answer_count == progress.slot_count == len(answers)
    assert all(answer.telemetry is not None for answer in answers)
    store = ModelStore(tmp_path / "home" / "store")
    (used,) = [
        use for use in store.resolve("reward@latest").manifest.lineage.data if use.uri.startswith("labeling:")
    ]
    assert used.count > 0
    judged = report.reward_model
    print(  # noqa: T201 - read by whoever runs it by hand
        f"{len(answers)} answers through the page; held-out accuracy {judged.accuracy:.3f} "
        f"({judged.accuracy_low:.3f} to {judged.accuracy_high:.3f}), longer wins "
        f"{judged.longer_wins_accuracy:.3f}"
    )
    if name == "builtin":
        assert judged.accuracy_low > 0.65
