"""``andon sample`` and ``andon score``: one call to the policy or the reward service, for people and
programs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from andon.cli.endpoints import find_target
from andon.cli.options import HomeOption, PolicyTarget, RewardTarget, TimeoutOption
from andon.cli.output import JsonFlag, messages, print_json, print_table
from andon.client.policy import PolicyClient, SamplingParameters
from andon.client.reward import RewardClient
from andon.corpus.loaders import load_documents
from andon.corpus.records import DocumentRecord
from andon.errors import InvalidArgumentError


def sample(
    document: Annotated[str | None, typer.Argument(help="The document; - reads it from stdin.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Documents from a JSONL file, a folder or hf:NAME instead.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many documents of --data.")] = 10,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Responses per document.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most probable token.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Share of the probability that may be drawn from.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a response.")] = 64,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends a response; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the draw repeatable.")] = None,
    policy_target: PolicyTarget = None,
    home: HomeOption = None,
    timeout_s: TimeoutOption = 300.0,
    as_json: JsonFlag = False,
) -> None:
    """Let the policy write summaries."""
    documents = _documents(document, data, limit)
    parameters = SamplingParameters(
        max_new_tokens=max_new_tokens,
        samples_per_prompt=samples,
        temperature=temperature,
        top_p=top_p,
        stop=tuple(stop or ()),
        seed=seed,
    )
    with (
        PolicyClient(find_target("policy", policy_target, home=home)) as client,
        messages().status("sampling ..."),
    ):
        answer = client.sample([record.document for record in documents], parameters, timeout_s=timeout_s)
    if as_json:
        print_json(
            {
                "model": answer.model,
                "seed": answer.seed,
                "queue_s": answer.queue_s,
                "compute_s": answer.compute_s,
                "results": [
                    {"document_id": record.document_id, "samples": result.samples}
                    for record, result in zip(documents, answer.results, strict=True)
                ],
            }
        )
        return
    print_table(
        f"{answer.model}, seed {answer.seed}, {answer.compute_s:.2f} s",
        ["document", "summary", ">tokens", "ended by"],
        [
            (record.document_id, drawn.text, len(drawn.token_ids), drawn.finish_reason)
            for record, result in zip(documents, answer.results, strict=True)
            for drawn in result.samples
        ],
    )


def score(
    document: Annotated[str | None, typer.Argument(help="The document; - reads it from stdin.")] = None,
    summaries: Annotated[list[str] | None, typer.Argument(help="One or more summaries of it.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Documents with summaries from a JSONL file, a folder or hf:NAME instead."
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many documents of --data.")] = 100,
    reward_target: RewardTarget = None,
    home: HomeOption = None,
    timeout_s: TimeoutOption = 300.0,
    as_json: JsonFlag = False,
) -> None:
    """Let the reward model score summaries: the larger, the better people would like them."""
    records = _documents(document, data, limit)
    if data is None:
        records = [
            DocumentRecord(document_id="", document=records[0].document, summaries=tuple(summaries or ()))
        ]
    bare = next((record for record in records if not record.summaries), None)
    if bare is not None:
        where = f"document {bare.document_id} has no summary" if data else "no summary was given"
        raise InvalidArgumentError(f"{where}; there is nothing to score", reason="EMPTY_REQUEST")
    with (
        RewardClient(find_target("reward", reward_target, home=home)) as client,
        messages().status("scoring ..."),
    ):
        answer = client.score(
            [(record.document, record.summaries) for record in records], timeout_s=timeout_s
        )
    if as_json:
        print_json(
            {
                "model": answer.model,
                "normalization": answer.normalization,
                "results": [
                    {"document_id": record.document_id, "summaries": scores}
                    for record, scores in zip(records, answer.items, strict=True)
                ],
            }
        )
        return
    print_table(
        f"{answer.model}, {answer.compute_s:.2f} s",
        [">score", ">tokens", "summary"],
        [
            (f"{summary_score.score:+.4f}", summary_score.token_count, text)
            for record, scores in zip(records, answer.items, strict=True)
            for text, summary_score in zip(record.summaries, scores, strict=True)
        ],
    )


def _documents(document: str | None, data: str | None, limit: int) -> Sequence[DocumentRecord]:
    if (document is None) == (data is None):
        raise InvalidArgumentError("give either a document or --data", reason="EMPTY_REQUEST")
    if data is not None:
        return load_documents(data)[:limit]
    text = sys.stdin.read() if document == "-" else document
    return [DocumentRecord(document_id="", document=text or "")]
