"""``andon label import|export|agreement|project``: comparisons in and out, and whether to believe them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from andon.cli.endpoints import find_target
from andon.cli.options import HomeOption, LabelingTarget
from andon.cli.output import JsonFlag, messages, plain, print_json, print_table, results
from andon.cli.tokens import find_token
from andon.client.labeling import (
    Agreement,
    Estimate,
    ImportReport,
    LabelingClient,
    ProjectSettings,
    RefusedRow,
)
from andon.corpus.export_format import row_from_comparison
from andon.corpus.json_lines import line_from_row
from andon.corpus.labeler_folds import labeler_fold
from andon.corpus.loaders import iter_comparisons
from andon.corpus.manifest import FilterReport, FilterTally
from andon.corpus.records import ComparisonRecord
from andon.corpus.splits import parse_split
from andon.corpus.writers import ComparisonExport, ExportFormat, ExportOptions, Votes, write_export
from andon.errors import AlreadyExistsError, InvalidArgumentError

ProjectOption = Annotated[str, typer.Option("--project", help="The project.")]
AnyBatchOption = Annotated[str, typer.Option("--batch", help="Only this batch.")]

MAX_REFUSED_SHOWN = 10


def register(app: typer.Typer) -> None:
    """Add the commands to ``andon label``."""
    app.command("import")(import_comparisons)
    app.command("export")(export)
    app.command("agreement")(agreement)
    app.command("project")(make_project)


def import_comparisons(
    source: Annotated[
        str,
        typer.Argument(
            help="JSON Lines (.gz or not), a folder of them, or hf:NAME: TL;DR comparisons, HH, PandaLM, "
            "SQuALITY, factuality verdicts, or what `andon label export` wrote."
        ),
    ],
    project: Annotated[str, typer.Option("--project", help="The project; made if it does not exist.")],
    batch: Annotated[
        str, typer.Option("--batch", help="The batch; project and source name it when left out.")
    ] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Fail if any row is refused.")] = False,
    labeling_target: LabelingTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Take in comparisons that were made elsewhere. Rows that cannot be read are refused and reported.

    Importing the same source again records nothing twice.
    """
    refused: list[RefusedRow] = []
    num_unreadable = 0

    def refuse(row: RefusedRow) -> None:
        nonlocal num_unreadable
        num_unreadable += 1
        if len(refused) < 1_000:
            refused.append(row)

    batch = batch or _batch_name(project, source)
    records = iter_comparisons(
        source,
        on_refused=lambda row, reason, message: refuse(RefusedRow(row=row, reason=reason, message=message)),
    )
    first = list(islice(records, 1))  # a source that cannot be read is found out before anything is made
    with _client(labeling_target, home) as client, _counter("importing") as advance:
        _ensure_project(client, project)
        report = client.import_comparisons(
            chain(first, records), project=project, batch=batch, on_refused=refuse, on_rows=advance
        )
    report = ImportReport(
        recorded_count=report.recorded_count,
        repeated_count=report.repeated_count,
        task_count=report.task_count,
        refused_count=report.refused_count + num_unreadable,
        refused=tuple(sorted((*refused, *report.refused), key=lambda one: one.row)),
    )
    _show_import(report, project=project, batch=batch, as_json=as_json)
    if strict and report.refused_count:
        raise InvalidArgumentError(f"{report.refused_count} rows were refused", reason="ROWS_REFUSED")


def export(
    batch: AnyBatchOption = "",
    project: Annotated[str, typer.Option("--project", help="Only this project.")] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File (.gz or not) with a manifest beside it; stdout when left out."),
    ] = None,
    format_: Annotated[
        ExportFormat, typer.Option("--format", help="Everything, TL;DR comparisons, or HH dialogues.")
    ] = ExportFormat.JSONL,
    votes: Annotated[
        Votes, typer.Option("--votes", help="Each answer, or what most labelers of a task say.")
    ] = Votes.RAW,
    split: Annotated[
        str | None, typer.Option("--split", help="By document, for example train=0.9,validation=0.1.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the split.")] = 0,
    folds: Annotated[
        int, typer.Option("--folds", min=0, max=100, help="Groups of labelers to hold one out of.")
    ] = 0,
    fold: Annotated[int, typer.Option("--fold", min=0, help="The group, from 0.")] = 0,
    only_fold: Annotated[
        bool, typer.Option("--only-fold", help="Write that group instead of all others.")
    ] = False,
    with_superseded: Annotated[
        bool, typer.Option("--with-superseded", help="Also answers that were corrected later.")
    ] = False,
    with_onboarding: Annotated[
        bool, typer.Option("--with-onboarding", help="Also answers to training and screening items.")
    ] = False,
    after: Annotated[int, typer.Option("--after", min=0, help="Only comparisons after this id.")] = 0,
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait for further answers until Ctrl-C; JSON Lines to stdout.")
    ] = False,
    labeling_target: LabelingTarget = None,
    home: HomeOption = None,
) -> None:
    """Write the comparisons as JSON Lines, which `andon train reward-model --comparisons` reads.

    What is left out is named and counted in the manifest. Answers that went out can no longer be corrected.
    """
    if folds == 1 or (folds and fold >= folds):
        raise InvalidArgumentError(
            "--folds needs at least 2 groups, --fold one of them", reason="INVALID_FOLD"
        )
    if split is not None and out is None:
        raise InvalidArgumentError("a split makes several files; name them by --out", reason="INVALID_SPLIT")
    if follow and (out is not None or format_ is not ExportFormat.JSONL or votes is not Votes.RAW):
        raise InvalidArgumentError(
            "--follow writes every answer as JSON Lines to stdout", reason="INVALID_FORMAT"
        )
    options = ExportOptions(
        format=format_, votes=votes, split=None if split is None else parse_split(split, seed=seed)
    )
    kept = _Kept(
        folds=folds,
        fold=fold,
        only_fold=only_fold,
        with_superseded=with_superseded,
        with_onboarding=with_onboarding,
    )
    with _client(labeling_target, home) as client, _counter("exporting") as advance:
        answers = client.export_comparisons(
            batch=batch,
            project=project,
            with_superseded=True,
            with_onboarding=True,
            after_comparison_id=after,
            follow=follow,
            timeout_s=None if follow else 86_400.0,
        )
        records = kept.of(_counted(answers, advance))
        if out is not None:
            manifest = write_export(
                records,
                out,
                options=options,
                command="andon label export",
                parameters={
                    "batch": batch,
                    "project": project,
                    "after": after,
                    "format": format_.value,
                    "votes": votes.value,
                    "split": split,
                    "seed": seed,
                },
                filters_before=kept.reports,
            )
            written = sum(output.row_count for output in manifest.outputs)
            removed = {one.name: one.removed_count for one in manifest.filters if one.removed_count}
        elif follow:
            written, removed = _follow(records), {}
        else:
            making = ComparisonExport(options)
            written = 0
            for line in making.lines(records):
                sys.stdout.write(line.text + "\n")
                written += 1
            removed = {
                one.name: one.removed_count
                for one in (*kept.reports(), *making.filters())
                if one.removed_count
            }
    messages().print(f"{written} rows")
    for name, count in removed.items():
        messages().print(f"left out, {name}: {count}")


def agreement(
    project: ProjectOption,
    batch: AnyBatchOption = "",
    labeling_target: LabelingTarget = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show how far labelers agree: pair by pair, Fleiss' kappa and Krippendorff's alpha, with 95 % intervals.

    A ranking is taken as its pairs and a tie is a label of its own.
    """
    with _client(labeling_target, home) as client, messages().status("reading the answers ..."):
        found = client.agreement(project, batch=batch)
    if as_json:
        print_json(_agreement_json(found))
        return
    print_table(
        None,
        ["figure", ">value", ">95 %", ">units"],
        [
            (name, *_cells(estimate))
            for name, estimate in (
                ("labeler-labeler agreement", found.labeler_labeler),
                ("labeler-researcher agreement", found.labeler_researcher),
                ("agreement with the majority", found.labeler_majority),
                ("Fleiss' kappa", found.fleiss_kappa),
                ("Krippendorff's alpha", found.krippendorff_alpha),
            )
        ],
    )
    print_table(
        None,
        ["a", "b", ">agreement", ">95 %", ">units", ">Cohen's kappa", ">95 %"],
        [(pair.a, pair.b, *_cells(pair.agreement), *_cells(pair.cohen_kappa)[:2]) for pair in found.pairs],
    )


def make_project(
    project: Annotated[str, typer.Argument(help="Letters, digits, '.', '_', '-'.")],
    title: Annotated[str, typer.Option("--title", help="What people read on top of the page.")] = "",
    instructions: Annotated[
        Path | None, typer.Option("--instructions", help="Text file that labelers read first.")
    ] = None,
    naive_reading: Annotated[
        bool, typer.Option("--naive-reading", help="Ask for a reading before the document is shown.")
    ] = False,
    rating_axes: Annotated[
        bool, typer.Option("--rating-axes", help="Ask for accuracy, coverage, coherence, overall.")
    ] = False,
    no_indifference: Annotated[
        bool, typer.Option("--no-indifference", help="Offer no 'no difference' for pairs.")
    ] = False,
    reading_aids: Annotated[
        bool, typer.Option("--reading-aids", help="Offer word differences and look-up.")
    ] = False,
    training: Annotated[int, typer.Option("--training", min=0, max=100, help="Items with feedback.")] = 0,
    screening: Annotated[int, typer.Option("--screening", min=0, max=100, help="Items without.")] = 0,
    min_agreement: Annotated[
        float, typer.Option("--min-agreement", min=0, max=1, help="Share right to be admitted.")
    ] = 0.0,
    max_item_s: Annotated[
        float | None, typer.Option("--max-item-seconds", help="Mean seconds an item to be admitted.")
    ] = None,
    max_attempts: Annotated[int, typer.Option("--attempts", min=1, max=10, help="At the screening.")] = 1,
    labeling_target: LabelingTarget = None,
    home: HomeOption = None,
) -> None:
    """Make a project; its settings can be changed on the site."""
    settings = ProjectSettings(
        title=title,
        instructions="" if instructions is None else instructions.read_text(encoding="utf-8"),
        naive_reading=naive_reading,
        rating_axes=rating_axes,
        no_indifference=no_indifference,
        reading_aids=reading_aids,
        training_count=training,
        screening_count=screening,
        min_agreement=min_agreement,
        max_item_s=max_item_s,
        max_attempts=max_attempts,
    )
    with _client(labeling_target, home) as client:
        created = client.create_project(project, settings)
    results().print(f"project {project} {'is made' if created else 'was there already, as asked for'}")


class _Kept:
    """Which answers are wanted, and a count of the others."""

    def __init__(
        self, *, folds: int, fold: int, only_fold: bool, with_superseded: bool, with_onboarding: bool
    ) -> None:
        self._folds, self._fold, self._only_fold = folds, fold, only_fold
        self._with_superseded, self._with_onboarding = with_superseded, with_onboarding
        self._superseded = FilterTally(
            "superseded", unit="comparison", reason="a later answer of the same labeler corrects it"
        )
        self._onboarding = FilterTally(
            "onboarding", unit="comparison", reason="answers of people who were still learning"
        )
        self._held_out = FilterTally(
            "labeler_fold",
            unit="comparison",
            reason="labelers of the other groups" if only_fold else "labelers of the group held out",
            parameters={"folds": folds, "fold": fold, "only_fold": only_fold},
        )

    def of(self, records: Iterable[ComparisonRecord]) -> Iterator[ComparisonRecord]:
        """Those that are wanted."""
        for record in records:
            if record.is_superseded and not self._with_superseded:
                self._superseded.removed(record.comparison_id)
            elif record.purpose in ("training", "screening") and not self._with_onboarding:
                self._onboarding.removed(record.comparison_id)
            elif self._folds and self._is_held_out(record.labeler_id):
                self._held_out.removed(record.comparison_id)
            else:
                yield record

    def reports(self) -> list[FilterReport]:
        """What was left out so far."""
        used = (
            (self._superseded, not self._with_superseded),
            (self._onboarding, not self._with_onboarding),
            (self._held_out, self._folds > 0),
        )
        return [tally.report() for tally, is_used in used if is_used]

    def _is_held_out(self, labeler_id: str) -> bool:
        is_in_fold = labeler_fold(labeler_id, num_folds=self._folds) == self._fold
        return is_in_fold is not self._only_fold


def _client(labeling_target: str | None, home: Path | None) -> LabelingClient:
    target = find_target("labeling", labeling_target, home=home)
    return LabelingClient(target, token=find_token(target, home=home))


def _ensure_project(client: LabelingClient, project: str) -> None:
    try:
        if client.create_project(project):
            messages().print(f"project {project} is new")
    except AlreadyExistsError:
        return  # with settings of its own


def _batch_name(project: str, source: str) -> str:
    """A name for the batch, because batches of two projects may not have the same."""
    name = source.partition("#")[0].rstrip("/").rpartition("/")[2].removeprefix("hf:")
    stem = re.sub(r"\.(jsonl|json)?(\.gz)?$", "", name)
    return f"{project}.{re.sub(r'[^A-Za-z0-9._-]+', '-', stem)}"[:100]


def _show_import(report: ImportReport, *, project: str, batch: str, as_json: bool) -> None:
    if as_json:
        print_json({"project": project, "batch": batch, **plain(report)})
        return
    results().print(
        f"{report.recorded_count} answers to {report.task_count} new tasks are in batch {batch} of {project}"
    )
    if report.repeated_count:
        results().print(f"{report.repeated_count} were there already, from the same import")
    if report.refused_count:
        results().print(f"{report.refused_count} rows were refused:")
        for row in report.refused[:MAX_REFUSED_SHOWN]:
            results().print(f"  row {row.row}: {row.reason}: {row.message}", soft_wrap=True, markup=False)
        if report.refused_count > MAX_REFUSED_SHOWN:
            results().print("  ... --json names more")


def _agreement_json(found: Agreement) -> dict[str, Any]:  # JSON
    return {
        "pairs": [
            {
                "a": pair.a,
                "b": pair.b,
                "n": pair.agreement.unit_count,
                "agreement": pair.agreement.value,
                "agreement_interval": _interval(pair.agreement),
                "cohen_kappa": pair.cohen_kappa.value,
                "cohen_kappa_interval": _interval(pair.cohen_kappa),
            }
            for pair in found.pairs
        ],
        "fleiss_kappa": found.fleiss_kappa.value,
        "krippendorff_alpha": found.krippendorff_alpha.value,
        "labeler_labeler": found.labeler_labeler.value,
        "labeler_researcher": found.labeler_researcher.value,
        "labeler_majority": found.labeler_majority.value,
        "intervals": {
            name: _interval(getattr(found, name))
            for name in (
                "fleiss_kappa",
                "krippendorff_alpha",
                "labeler_labeler",
                "labeler_researcher",
                "labeler_majority",
            )
        },
    }


def _interval(estimate: Estimate) -> list[float] | None:
    return None if estimate.low is None or estimate.high is None else [estimate.low, estimate.high]


def _cells(estimate: Estimate) -> tuple[str, str, str]:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "–", "", str(estimate.unit_count)
    return f"{estimate.value:.3f}", f"{estimate.low:.3f}–{estimate.high:.3f}", str(estimate.unit_count)


def _counted(records: Iterable[ComparisonRecord], advance: Any) -> Iterator[ComparisonRecord]:
    for number, record in enumerate(records, 1):
        yield record
        if number % 500 == 0:
            advance(500)


def _follow(records: Iterable[ComparisonRecord]) -> int:
    count = 0
    for record in records:
        sys.stdout.write(line_from_row(row_from_comparison(record)) + "\n")
        sys.stdout.flush()
        count += 1
    return count


@contextmanager
def _counter(title: str) -> Iterator[Any]:  # a function that takes how many more there are
    console = messages()
    with Progress(
        TextColumn("{task.description} {task.completed:,.0f}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a counter in a file is only noise
    ) as progress:
        task = progress.add_task(title, total=None)
        yield lambda count: progress.advance(task, count)
