"""``andon data``: prepare documents for labeling and training, with a manifest of what was done to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from andon.cli.output import JsonFlag, messages, print_json, print_table, results
from andon.corpus.filters import Deduplication, FilterSettings, PersonalDataMode
from andon.corpus.manifest import InputReport, Manifest, manifest_path
from andon.corpus.preparation import SplitBy, filter_file, split_file
from andon.corpus.splits import make_split
from andon.corpus.token_counts import TokenCounter, TokenizerCounter, WordCounter

app = typer.Typer(help="Filter and split data sets, with a manifest.", no_args_is_help=True)

ROWS_PER_UPDATE = 1000

InputArgument = Annotated[
    Path, typer.Argument(metavar="IN", help="JSON Lines of documents or comparisons, .gz or not.")
]
StrictFlag = Annotated[
    bool, typer.Option("--strict", help="End at a row that cannot be read, instead of counting it.")
]


@app.command("filter")
def filter_rows(
    source: InputArgument,
    destination: Annotated[
        Path, typer.Argument(metavar="OUT", help="JSON Lines, gzipped where it ends in .gz.")
    ],
    min_summary_tokens: Annotated[
        int | None, typer.Option(min=0, help="Shortest reference (TL;DR: 24).")
    ] = None,
    max_summary_tokens: Annotated[
        int | None, typer.Option(min=0, help="Longest reference (TL;DR: 48).")
    ] = None,
    max_document_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest document (TL;DR: 512).")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="What counts tokens: a tokenizer.json, a folder with one or a name on the Hugging Face hub; "
            "words and marks when left out."
        ),
    ] = None,
    personal_data: Annotated[
        PersonalDataMode | None,
        typer.Option(help="Remove rows with personal data, mask it, or only count it."),
    ] = None,
    phone_region: Annotated[
        list[str] | None,
        typer.Option(help="Find this region's national phone numbers, too, for example US; may be repeated."),
    ] = None,
    deduplicate: Annotated[
        Deduplication, typer.Option(help="Which documents are the same.")
    ] = Deduplication.NONE,
    common_prefix: Annotated[
        int | None,
        typer.Option(min=1, help="Remove documents that begin with the same N characters as an earlier one."),
    ] = None,
    max_per_user: Annotated[
        int | None, typer.Option(min=1, help="Most rows of one user (InstructGPT: 200); needs --user-key.")
    ] = None,
    user_key: Annotated[
        str | None, typer.Option(help="Where a row names its user, for example author or info.author.")
    ] = None,
    strict: StrictFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Keep the rows that pass the filters asked for, in this order: length of the summary, length of the
    document, personal data, duplicates, common prefix, most per user. OUT.manifest.json says what each
    removed.
    """
    settings = FilterSettings(
        min_summary_tokens=min_summary_tokens,
        max_summary_tokens=max_summary_tokens,
        max_document_tokens=max_document_tokens,
        personal_data=personal_data,
        phone_regions=tuple(phone_region or ()),
        deduplicate=deduplicate,
        common_prefix=common_prefix,
        max_per_user=max_per_user,
        user_key=user_key,
    )
    counter: TokenCounter = WordCounter() if tokenizer is None else TokenizerCounter(tokenizer)
    with _row_count("filtering") as on_row:
        manifest = filter_file(
            source, destination, settings=settings, counter=counter, strict=strict, on_row=on_row
        )
    _show(manifest, manifest_path(destination), as_json=as_json)


@app.command()
def split(
    source: InputArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="OUTDIR", help="Gets train.jsonl, validation.jsonl and test.jsonl.")
    ],
    by: Annotated[
        SplitBy | None,
        typer.Option(
            help="What stands on one side only; the user where --user-key is given, else the document."
        ),
    ] = None,
    user_key: Annotated[
        str | None, typer.Option(help="Where a row names its user, for example author or info.author.")
    ] = None,
    train: Annotated[float, typer.Option(min=0, max=1, help="Share of the users or documents.")] = 0.8,
    validation: Annotated[float, typer.Option(min=0, max=1, help="Share of the users or documents.")] = 0.1,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of the users or documents.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Another seed is another split.")] = 0,
    strict: StrictFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Split by user or document: by a hash, so that order does not matter and a later file splits alike.
    OUTDIR/manifest.json says what stands where.
    """
    if by is None:
        by = SplitBy.DOCUMENT if user_key is None else SplitBy.USER
    sides = make_split({"train": train, "validation": validation, "test": test}, seed=seed)
    with _row_count("splitting") as on_row:
        manifest = split_file(
            source, folder, split=sides, by=by, user_key=user_key, strict=strict, on_row=on_row
        )
    _show(manifest, folder / "manifest.json", as_json=as_json)


def _show(manifest: Manifest, path: Path, *, as_json: bool) -> None:
    for report in manifest.inputs:
        _warn_of_refused(report)
    if as_json:
        print_json(manifest)
        return
    if manifest.filters:
        print_table(
            None,
            ["filter", ">removed", ">changed", "kinds", "for example"],
            [
                (
                    report.name,
                    report.removed_count,
                    report.changed_count,
                    ", ".join(f"{kind} {count}" for kind, count in report.counts.items()),
                    ", ".join(report.example_ids),
                )
                for report in manifest.filters
            ],
        )
    print_table(
        None,
        ["file", ">rows", "of these"],
        [
            *((report.path, report.row_count, "read") for report in manifest.inputs),
            *(
                (
                    report.path,
                    report.row_count,
                    ", ".join(f"{count} {kind}" for kind, count in report.counts.items()),
                )
                for report in manifest.outputs
            ),
        ],
    )
    results().print(f"the manifest is {path}", soft_wrap=True, highlight=False)


def _warn_of_refused(report: InputReport) -> None:
    if report.refused_count:
        reasons = ", ".join(f"{reason} {count}" for reason, count in report.refused_by_reason.items())
        rows = ", ".join(str(example["row"]) for example in report.refused_examples)
        messages().print(
            f"{report.refused_count} rows could not be read ({reasons}), for example {rows}", highlight=False
        )


@contextmanager
def _row_count(doing: str) -> Iterator[Callable[[], None]]:
    """A function to call once a row, which keeps the number of rows on the screen."""
    count = 0
    with messages().status(f"{doing} ...") as status:

        def on_row() -> None:
            nonlocal count
            count += 1
            if count % ROWS_PER_UPDATE == 0:
                status.update(f"{doing} ... {count} rows")

        yield on_row
