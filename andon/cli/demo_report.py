"""Decides what the demo measures at its end and writes down: win rates, KL, the reward model, the curves."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from andon.cli.demo_flow import DemoFlow, DemoOutcome, StageCurve
from andon.cli.measurements import Measuring, gold_scores
from andon.cli.output import print_table
from andon.cli.policy_comparison import GOLD_JUDGE, REFERENCES, compare_policies
from andon.cli.recipes import Recipe
from andon.evaluation.report import write_report
from andon.evaluation.summary import Curve, Report
from andon.evaluation.win_rate import win_rate

POLICY_NAME = "ppo"
SFT_NAME = "sft"


def measure(flow: DemoFlow, outcome: DemoOutcome) -> tuple[Report, Path]:
    """Measures what the demo trained and writes the report; returns it with the path of its page."""
    with flow.phase("measurements"):
        report = _measured(flow, outcome)
    with flow.phase("report"):
        # Once more, now that the time of everything before is known.
        report = _with_seconds(report, flow)
        page, _ = write_report(report, flow.request.out)
    return report, page


def _measured(flow: DemoFlow, outcome: DemoOutcome) -> Report:
    request, corpus, models = flow.request, outcome.corpus, outcome.models
    recipe = request.recipe
    measuring = flow.measuring(models)
    with flow.bar("summaries", 2 * len(corpus.test)) as advance:
        comparison = compare_policies(
            measuring,
            {POLICY_NAME: models.policy, SFT_NAME: models.sft},
            corpus.test,
            corpus.posts_of(corpus.test),
            max_new_tokens=recipe.evaluation.max_new_tokens,
            shown_samples=recipe.evaluation.shown_samples,
            advance=advance,
        )
    documents = [record.document for record in corpus.test[: recipe.evaluation.kl_documents]]
    temperature = float(recipe.ppo.get("temperature", 1.0))
    with flow.bar("KL", len(documents)) as advance:
        kl_nats = measuring.kl_nats(
            models.policy,
            documents,
            temperature=temperature,
            max_new_tokens=int(recipe.ppo.get("max_new_tokens", recipe.evaluation.max_new_tokens)),
            seed=request.seed,
            advance=advance,
        )
    reward_model = measuring.reward_model_summary(
        outcome.held_out, corpus.posts_of(corpus.reward_test), edit_seed=request.seed
    )
    curves = [_curve(curve) for curve in outcome.curves]
    on_the_way = _policies_over_time(flow, outcome, measuring)
    if on_the_way is not None:
        curves.append(on_the_way)
    return Report(
        title=recipe.title,
        notes=(*corpus.notes, *_notes_on_penalty(recipe)),
        seed=request.seed,
        win_rates=comparison.win_rates,
        policies=comparison.summaries,
        kl_nats=kl_nats,
        reward_model=reward_model,
        curves=curves,
        samples=comparison.samples,
        seconds={},
        model_store=flow.services.model_store,
        models={
            "policy": str(models.policy),
            "reference": str(models.sft),
            "reward model": str(models.reward),
        },
        config={
            "data": request.data or "built-in corpus",
            "restarts": dict(flow.services.restarts),
            **recipe.model_dump(mode="json"),
        },
    )


def _notes_on_penalty(recipe: Recipe) -> tuple[str, ...]:
    if recipe.ppo.get("kl", {}).get("beta") != 0:
        return ()
    changed = ", ".join(f"{name} {value}" for name, value in recipe.ppo_without_penalty.items())
    settings = f" and with settings of its own ({changed})" if changed else ""
    return (
        f"PPO ran without a KL penalty{settings}: watch the reward model's score rise while the wins by "
        "the gold judge fall. It shows what the penalty is for; it is no policy to use.",
    )


def _with_seconds(report: Report, flow: DemoFlow) -> Report:
    seconds = dict(flow.state.seconds)
    return replace(report, seconds={**seconds, "total": round(sum(seconds.values()), 3)})


def _curve(curve: StageCurve) -> Curve:
    names = sorted({name for metrics in curve.steps.values() for name in metrics})
    return Curve(
        stage=curve.stage,
        steps=list(curve.steps),
        metrics={name: [metrics.get(name, math.nan) for metrics in curve.steps.values()] for name in names},
    )


def _policies_over_time(flow: DemoFlow, outcome: DemoOutcome, measuring: Measuring) -> Curve | None:
    """Reward and gold win rate of every stored policy on the first test documents: over-optimisation shows
    here.
    """
    recipe, corpus = flow.request.recipe, outcome.corpus
    versions = outcome.models.policies_on_the_way
    documents = corpus.test[: recipe.evaluation.track_documents]
    if len(versions) < 2 or not documents:
        return None
    posts = corpus.posts_of(documents)
    by_version = [outcome.models.sft, *versions]
    kl_by_update = {0: 0.0, **_ppo_metric(outcome, "kl_nats")}
    last_update = max(kl_by_update)
    steps = [0, *(last_update - (versions[-1].version - version.version) for version in versions)]
    rows: dict[str, list[float]] = {
        "reward_score": [],
        "kl_nats": [kl_by_update.get(step, math.nan) for step in steps],
    }
    if posts is not None:
        rows["gold_win_rate"] = []
    references = [record.summaries[0] for record in documents]
    texts_only = [record.document for record in documents]
    with flow.bar("policies over time", len(by_version) * len(documents)) as advance:
        for version in by_version:
            written = measuring.greedy_texts(
                str(version),
                version,
                documents,
                max_new_tokens=recipe.evaluation.max_new_tokens,
                advance=advance,
            )
            scores = measuring.reward_scores(texts_only, [[text] for text in written.texts])
            rows["reward_score"].append(statistics.fmean(row[0] for row in scores if math.isfinite(row[0])))
            if posts is not None:
                gold = gold_scores(posts, {"policy": written.texts, "reference": references})
                rate = win_rate(
                    gold["policy"],
                    gold["reference"],
                    policy=POLICY_NAME,
                    against=REFERENCES,
                    judge=GOLD_JUDGE,
                )
                rows["gold_win_rate"].append(rate.rate)
    return Curve(stage="policy", steps=steps, metrics=rows)


def _ppo_metric(outcome: DemoOutcome, name: str) -> dict[int, float]:
    """One metric of the PPO run by update."""
    return {
        step: metrics[name]
        for curve in outcome.curves
        if curve.stage == "ppo"
        for step, metrics in curve.steps.items()
        if name in metrics
    }


def print_report(report: Report, console: Console) -> None:
    """The figures that matter, for people."""
    print_table(
        "win rates at temperature 0",
        ["policy", "against", "judge", ">rate", ">95 % interval", ">documents"],
        [
            (
                rate.policy,
                rate.against,
                rate.judge,
                f"{rate.rate:.1%}",
                f"{rate.low:.1%} to {rate.high:.1%}",
                rate.n,
            )
            for rate in report.win_rates
        ],
        console=console,
    )
    rows: list[tuple[str, str]] = [("KL from the reference", f"{report.kl_nats:.2f} nats per summary")]
    judged = report.reward_model
    if judged is not None:
        rows += [
            (
                "reward model on held-out comparisons",
                f"{judged.accuracy:.1%} ({judged.accuracy_low:.1%} to {judged.accuracy_high:.1%}, "
                f"n={judged.n})",
            ),
            ("the longer one wins, on the same", f"{judged.longer_wins_accuracy:.1%}"),
        ]
        if judged.labeler_agreement is not None:
            rows.append(("two labelers agree", f"{judged.labeler_agreement:.1%}"))
        if judged.gold_accuracy is not None:
            rows.append(("reward model against the gold judge", f"{judged.gold_accuracy:.1%}"))
        rows += [(f"sees the edit: {name}", f"{share:.1%}") for name, share in judged.edit_test.items()]
    print_table(None, ["", ">"], rows, console=console)
    for note in report.notes:
        console.print(f"[dim]{escape(note)}[/]")
