"""``andon evaluate``: how good policies are on documents with references, by the running services."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from andon.cli.endpoints import find_target, store_location
from andon.cli.options import HomeOption, PolicyTarget, ReferenceTarget, RewardTarget, StoreOption
from andon.cli.output import JsonFlag, messages, print_json, results
from andon.client.policy import PolicyClient
from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.corpus.loaders import load_comparisons, load_documents
from andon.errors import InvalidArgumentError


def evaluate(
    data: Annotated[
        str,
        typer.Option(
            "--data", help="Documents with reference summaries: a JSONL file, a folder, or hf:NAME."
        ),
    ],
    comparisons: Annotated[
        str | None,
        typer.Option("--comparisons", help="Held-out decisions by people, to measure the reward model on."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="A policy to evaluate; may be repeated. The served one when left out."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html and report.json.")] = Path(
        "evaluation"
    ),
    limit: Annotated[int, typer.Option("--limit", min=2, help="At most so many documents.")] = 500,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a summary.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the samples that measure the KL.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the samples that measure the KL.")] = 0,
    policy_target: PolicyTarget = None,
    reference_target: ReferenceTarget = None,
    reward_target: RewardTarget = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare policies with references, lead-3 and each other, and write a report.

    The policy service is given each --model in turn and keeps the first.
    """
    # Imported here: the statistics and plots take a second that `andon --help` must not.
    from andon.cli.demo_report import print_report
    from andon.cli.evaluation_flow import EvaluationRequest, evaluate_policies
    from andon.evaluation.report import write_report

    documents = [record for record in load_documents(data) if record.summaries][:limit]
    if len(documents) < 2:
        raise InvalidArgumentError(
            f"{data} holds {len(documents)} documents with a reference summary; an evaluation needs more",
            reason="TOO_FEW_DOCUMENTS",
        )
    request = EvaluationRequest(
        data=data,
        documents=tuple(documents),
        comparisons=() if comparisons is None else tuple(load_comparisons(comparisons)),
        model_names=tuple(models or ()),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        model_store=store_location(store, home=home),
    )
    console = messages()
    with (
        PolicyClient(find_target("policy", policy_target, home=home)) as policy,
        ReferenceClient(find_target("reference", reference_target, home=home)) as reference,
        RewardClient(find_target("reward", reward_target, home=home)) as reward,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as progress,
    ):
        bar = progress.add_task("summaries", total=max(1, len(request.model_names)) * len(documents))
        report = evaluate_policies(
            request, policy, reference, reward, lambda count: progress.advance(bar, count)
        )
    page, _ = write_report(report, out)
    if as_json:
        print_json(
            {
                "win_rates": report.win_rates,
                "kl_nats": report.kl_nats,
                "reward_model": report.reward_model,
                "policies": report.policies,
                "models": report.models,
                "report": page,
            }
        )
        return
    print_report(report, results())
    results().print(f"report: {page}", soft_wrap=True, highlight=False)
