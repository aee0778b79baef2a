"""The report: valid JSON, one page that stands alone, nothing unescaped."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path

from andon.evaluation.report import write_report
from andon.evaluation.summary import Curve, Report, RewardModelSummary, SampleRow, summarise_policy
from andon.evaluation.win_rate import win_rate

HOSTILE = '<script>alert(1)</script> & "quoted"'


def a_report() -> Report:
    return Report(
        title="A run",
        notes=["Labelers are simulated."],
        seed=3,
        win_rates=[win_rate([1.0, 2.0], [0.0, 3.0], policy="ppo", against="sft", judge="gold judge")],
        policies=[summarise_policy("ppo", [HOSTILE], ["A post."], [["A post."]], gold_scores=[1.0])],
        kl_nats=2.5,
        reward_model=RewardModelSummary(
            accuracy=0.7,
            accuracy_low=0.6,
            accuracy_high=0.8,
            n=100,
            labeler_agreement=0.75,
            labeler_agreement_n=50,
            longer_wins_accuracy=0.6,
            edit_test={"swap": 0.8},
            edit_test_n=10,
        ),
        curves=[
            Curve(stage="ppo", steps=[1, 2], metrics={"kl_nats": [0.1, math.nan], "score_mean": [0.0, 1.0]})
        ],
        samples=[SampleRow(document=HOSTILE, texts={"ppo": HOSTILE}, gold_scores={}, reward_scores={})],
        seconds={"ppo": 12.0},
        model_store="store",
        models={"policy": "policy/2"},
        config={"beta": 0.05, "note": HOSTILE},
    )


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        for name, value in attrs:
            assert not (name in ("src", "href") and value and value.startswith("http")), "needs the network"


def test_report_is_written_whole(tmp_path: Path) -> None:
    html_path, json_path = write_report(a_report(), tmp_path / "out")
    page = html_path.read_text()
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.names
    assert tags.names.count("svg") == 2  # win rates and PPO curves
    assert "<script>" not in page
    data = json.loads(json_path.read_text())
    assert data["win_rates"][0] == {
        "policy": "ppo", "against": "sft", "judge": "gold judge", "rate": 0.5, "n": 2,
        "low": data["win_rates"][0]["low"], "high": data["win_rates"][0]["high"],
    }  # fmt: skip
    assert data["kl_nats"] == 2.5
    assert data["reward_model"]["accuracy"] == 0.7
    assert data["curves"][0]["metrics"]["kl_nats"] == [0.1, None]
    assert sorted(path.name for path in html_path.parent.iterdir()) == ["report.html", "report.json"]
