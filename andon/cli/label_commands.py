"""``andon label``: hand tasks to labelers, let simulated ones answer, take the comparisons out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from andon.cli import access_commands, label_exchange_commands
from andon.cli.endpoints import find_target
from andon.cli.options import HomeOption, LabelingTarget, PolicyTarget
from andon.cli.output import JsonFlag, messages, plain, print_json, print_table, results
from andon.cli.simulated_labelers import label_batch, opinions_for
from andon.cli.tokens import find_token
from andon.client.labeling import BatchSettings, LabelingClient, TaskDraft
from andon.client.labeling_values import is_showable
from andon.client.policy import PolicyClient, SamplingParameters
from andon.corpus.loaders import load_documents
from andon.corpus.records import CandidateRecord, DocumentRecord
from andon.errors import InvalidArgumentError

app = typer.Typer(help="Collect comparisons.", no_args_is_help=True)
access_commands.register(app)
label_exchange_commands.register(app)

PROMPTS_PER_CALL = 64

BatchOption = Annotated[str, typer.Option("--batch", help="The batch the tasks belong to.")]


class PurposeOption(StrEnum):
    """What the answers to sampled tasks are for; others come with the right answer, from --tasks."""

    ORDINARY = "ordinary"
    CALIBRATION = "calibration"
    DRIFT = "drift"


class AnswerModeOption(StrEnum):
    """How simulated labelers answer."""

    RANKING = "ranking"
    CHOICE = "choice"


@app.command()
def submit(
    batch: BatchOption,
    tasks: Annotated[
        Path | None,
        typer.Option("--tasks", help='JSON Lines of {"document": ..., "candidates": [text, ...]}.'),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Documents; the policy service writes the candidates.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many documents of --data.")] = 1000,
    candidates: Annotated[
        int, typer.Option("--candidates", min=2, max=9, help="Candidates per document of --data.")
    ] = 4,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the policy's samples.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a sample.")] = 64,
    with_reference: Annotated[
        bool, typer.Option("--with-reference", help="Put the reference summary among the candidates.")
    ] = False,
    overlap: Annotated[int, typer.Option("--overlap", min=1, max=100, help="Labelers per task.")] = 1,
    project: Annotated[
        str, typer.Option("--project", help="The project of a new batch; `default` when left out.")
    ] = "",
    purpose: Annotated[
        PurposeOption,
        typer.Option("--purpose", help="Of the tasks of --data: data, for everybody, or to see drift."),
    ] = PurposeOption.ORDINARY,
    mode: Annotated[
        str, typer.Option("--mode", help="Of a new batch: offline, batched or online.")
    ] = "batched",
    calibration_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Of a new batch: share from the calibration pool.")
    ] = 0.0,
    drift_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Of a new batch: share of supervised against reference.")
    ] = 0.0,
    gold_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Of a new batch: share whose right answer is known.")
    ] = 0.0,
    repeat_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Of a new batch: share that a labeler answered before.")
    ] = 0.0,
    labeling_target: LabelingTarget = None,
    policy_target: PolicyTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Add tasks to a batch, from a file or from samples of the policy."""
    if (tasks is None) == (data is None):
        raise InvalidArgumentError("give either --tasks or --data", reason="EMPTY_REQUEST")
    if tasks is not None:
        drafts = list(read_tasks(tasks, overlap))
    else:
        documents = load_documents(data or "")[:limit]
        parameters = SamplingParameters(
            max_new_tokens=max_new_tokens,
            samples_per_prompt=candidates - int(with_reference),
            temperature=temperature,
        )
        with PolicyClient(find_target("policy", policy_target, home=home)) as policy:
            drafts = sampled_tasks(
                policy,
                documents,
                parameters,
                overlap,
                with_reference=with_reference,
                purpose=purpose.value,
            )
    with _client(labeling_target, home) as client:
        task_ids = client.submit_tasks(
            drafts,
            batch=batch,
            project=project,
            batch_settings=BatchSettings(
                mode=mode,
                calibration_share=calibration_share,
                drift_share=drift_share,
                gold_share=gold_share,
                repeat_share=repeat_share,
            ),
        )
    if as_json:
        print_json({"batch": batch, "task_ids": task_ids})
    else:
        results().print(f"{len(task_ids)} tasks are in batch {batch}")


@app.command()
def simulate(
    batch: BatchOption,
    data: Annotated[
        str,
        typer.Option("--data", help="The documents of the batch, with known facts or reference summaries."),
    ],
    labelers: Annotated[int, typer.Option("--labelers", min=1, max=64, help="How many answer at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Draws the labelers' tastes and noise.")] = 0,
    mode: Annotated[
        AnswerModeOption, typer.Option("--answers", help="Order all candidates, or name the best.")
    ] = AnswerModeOption.RANKING,
    labeling_target: LabelingTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Let simulated labelers answer a batch. They are no people, and the report says so."""
    opinions = opinions_for(load_documents(data), seed=seed)
    target = find_target("labeling", labeling_target, home=home)
    with LabelingClient(target, token=find_token(target, home=home)) as client:
        before = client.progress(batch=batch)
    messages().print(opinions.description)
    with _bar("answers", max(0, before.slot_count - before.answer_count)) as (progress, bar):
        tally = label_batch(
            target,
            batch,
            opinions,
            token=find_token(target, home=home),
            labelers=labelers,
            mode=mode.value,
            on_answers=lambda count: progress.advance(bar, count),
        )
    if as_json:
        print_json({"batch": batch, "opinions": opinions.description, **plain(tally)})
    else:
        print_table(None, ["labeler", ">answers"], tally.answers_by_labeler.items())


@app.command("progress")
def show_progress(
    batch: Annotated[str, typer.Option("--batch", help="Only this batch.")] = "",
    project: Annotated[str, typer.Option("--project", help="Only this project.")] = "",
    labeling_target: LabelingTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show how far a batch or a project is."""
    with _client(labeling_target, home) as client:
        progress = client.progress(batch=batch, project=project)
    if as_json:
        print_json(progress)
        return
    print_table(None, [batch or project or "all batches", ">"], plain(progress).items())


def read_tasks(path: Path, overlap: int) -> Iterator[TaskDraft]:
    """Tasks from JSON Lines; a candidate is a text or an object with text, source and policy_version.

    Beside document and candidates a line may hold document_id, overlap, kind, purpose, expected (tiers of
    candidate indices) and explanation.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield TaskDraft(
                document=row["document"],
                candidates=tuple(_candidate(candidate) for candidate in row["candidates"]),
                document_id=str(row.get("document_id", f"{path.stem}-{number}")),
                overlap=int(row.get("overlap", overlap)),
                kind=str(row.get("kind", "compare")),
                purpose=str(row.get("purpose", "ordinary")),
                expected=(
                    None
                    if row.get("expected") is None
                    else tuple(tuple(int(index) for index in tier) for tier in row["expected"])
                ),
                explanation=str(row.get("explanation", "")),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidArgumentError(
                f"{path}:{number} is not a task with a document and candidates: {error!r}",
                reason="MALFORMED_ROW",
            ) from error


def sampled_tasks(
    policy: PolicyClient,
    documents: list[DocumentRecord],
    parameters: SamplingParameters,
    overlap: int,
    *,
    with_reference: bool,
    purpose: str = "ordinary",
) -> list[TaskDraft]:
    """One task per document, with the policy's samples as candidates."""
    # A model that was only fine-tuned is what drift is measured by.
    source = "supervised" if purpose == "drift" else "policy"
    drafts: list[TaskDraft] = []
    with _bar("sampling", len(documents)) as (progress, bar):
        for start in range(0, len(documents), PROMPTS_PER_CALL):
            part = documents[start : start + PROMPTS_PER_CALL]
            answer = policy.sample([record.document for record in part], parameters)
            for record, result in zip(part, answer.results, strict=True):
                texts = [
                    CandidateRecord(text=drawn.text, source=source, policy_version=str(drawn.model))
                    for drawn in result.samples
                    if is_showable(drawn.text)
                ]
                if with_reference and record.summaries:
                    texts.append(CandidateRecord(text=record.summaries[0], source="reference"))
                if len({candidate.text for candidate in texts}) >= 2:
                    drafts.append(
                        TaskDraft(
                            document=record.document,
                            candidates=tuple(texts),
                            document_id=record.document_id,
                            overlap=overlap,
                            purpose=purpose,
                        )
                    )
            progress.advance(bar, len(part))
    return drafts


def _client(labeling_target: str | None, home: Path | None) -> LabelingClient:
    target = find_target("labeling", labeling_target, home=home)
    return LabelingClient(target, token=find_token(target, home=home))


def _candidate(value: Any) -> CandidateRecord:  # whatever a line of JSON holds
    if isinstance(value, str):
        return CandidateRecord(text=value)
    return CandidateRecord(
        text=value["text"], source=value.get("source", ""), policy_version=value.get("policy_version")
    )


@contextmanager
def _bar(title: str, total: int) -> Iterator[tuple[Progress, Any]]:  # rich's task id is a private type
    console = messages()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a bar in a file is only noise
    ) as progress:
        yield progress, progress.add_task(title, total=total)
