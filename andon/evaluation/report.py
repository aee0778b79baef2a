"""Writes what a run leaves: ``report.html`` for people and ``report.json`` for programs.

The page stands alone (figures inside, no scripts, no network) and escapes every text that a model or a person
wrote.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from andon.evaluation.plots import Panel, curve_panels, win_rate_bars
from andon.evaluation.summary import Curve, Report

_STAGE_TITLES = {
    "sft": "Supervised fine-tuning",
    "reward_model": "Reward model",
    "ppo": "PPO",
    "policy": "The policy over time",
}

# Metric names as the training stages report them.
_PANELS: Mapping[str, Sequence[Panel]] = {
    "sft": (
        Panel(
            title="loss",
            unit="nats per token",
            metrics=("loss_nats_per_token", "validation_loss_nats_per_token"),
        ),
        Panel(title="learning rate", unit="", metrics=("learning_rate",)),
        Panel(title="gradient norm", unit="", metrics=("gradient_norm",)),
    ),
    "reward_model": (
        Panel(
            title="exchanged words found, before labels",
            unit="",
            metrics=("detection_accuracy", "summary_detection_accuracy"),
            percent=True,
        ),
        Panel(title="loss", unit="nats per pair", metrics=("loss_nats", "validation_loss_nats")),
        Panel(title="accuracy", unit="", metrics=("accuracy", "validation_accuracy"), percent=True),
        Panel(title="gradient norm", unit="", metrics=("gradient_norm",)),
    ),
    "ppo": (
        Panel(title="reward model's score", unit="", metrics=("score_mean",)),
        Panel(title="reward with KL penalty", unit="", metrics=("reward_mean",)),
        Panel(title="KL from the reference", unit="nats per response", metrics=("kl_nats",)),
        Panel(title="entropy", unit="nats per token", metrics=("entropy_nats",)),
        Panel(title="response length", unit="tokens", metrics=("response_tokens",)),
        Panel(title="responses without end", unit="", metrics=("missing_eos_ratio",), percent=True),
        Panel(title="policy loss", unit="", metrics=("policy_loss",)),
        Panel(title="value loss", unit="", metrics=("value_loss",)),
        Panel(title="explained variance", unit="", metrics=("explained_variance",)),
        Panel(
            title="clipped tokens", unit="", metrics=("policy_clip_ratio", "value_clip_ratio"), percent=True
        ),
        Panel(
            title="sampler against trainer", unit="max |log p| apart", metrics=("sampler_logprob_max_error",)
        ),
        Panel(title="KL coefficient", unit="beta", metrics=("beta",)),
    ),
    # Stored versions on fixed documents at temperature 0: when the first rises and the second falls, the
    # policy has found what the reward model gets wrong.
    "policy": (
        Panel(title="reward model's score", unit="", metrics=("reward_score",)),
        Panel(title="wins against references, gold judge", unit="", metrics=("gold_win_rate",), percent=True),
        Panel(title="KL from the reference", unit="nats per response", metrics=("kl_nats",)),
    ),
}


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Writes ``report.html`` and ``report.json`` into the folder and returns their paths, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    json_path = folder / "report.json"
    html_path = folder / "report.html"
    _replace(json_path, json.dumps(report_as_json(report), indent=2, allow_nan=False) + "\n")
    _replace(html_path, render_html(report))
    return html_path, json_path


def report_as_json(report: Report) -> dict[str, Any]:  # Any: JSON
    """The report as JSON values; numbers that are not finite become null."""
    plain = _finite(dataclasses.asdict(report))
    assert isinstance(plain, dict)
    return plain


def render_html(report: Report) -> str:
    """The report as one HTML page."""
    environment = Environment(
        loader=PackageLoader("andon.evaluation", "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share * 100:.1f} %"
    environment.filters["number"] = lambda value, digits=2: "–" if value is None else f"{value:.{digits}f}"
    figures = [
        (_STAGE_TITLES.get(curve.stage, curve.stage), figure)
        for curve in report.curves
        if (figure := _figure(curve)) is not None
    ]
    return environment.get_template("report.html").render(
        report=report,
        win_rate_figure=win_rate_bars(report.win_rates) if report.win_rates else "",
        figures=figures,
        config_text=json.dumps(_finite(report.config), indent=2, default=str),
    )


def _figure(curve: Curve) -> str | None:
    return curve_panels(curve, _PANELS.get(curve.stage, ()))


def _finite(value: Any) -> Any:  # Any: JSON
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _replace(path: Path, text: str) -> None:
    """A reader never sees half a file."""
    temporary = path.with_suffix(path.suffix + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
