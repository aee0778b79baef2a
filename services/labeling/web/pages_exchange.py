"""Answers out and in: downloads that stream, and imports that are pasted.

An export is a form that is sent, not a link: what it has sent can no longer be corrected, so nothing that
follows links by itself may start one.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Mapping

from starlette.responses import Response, StreamingResponse

from andon.corpus.manifest import Json
from andon.corpus.writers import ExportFormat, ExportOptions, Votes
from services.labeling.answers import Comparison
from services.labeling.demonstration_store import Demonstration
from services.labeling.errors import BatchClosedError, BatchOfAnotherProjectError
from services.labeling.export import (
    MAX_FOLDS,
    ExportFilter,
    ExportPace,
    LabelerFold,
    check_export_filter,
    pages_of_comparisons,
)
from services.labeling.export_stream import (
    ExportAbout,
    comparison_archive,
    comparison_lines,
    demonstration_lines,
)
from services.labeling.import_lines import ImportLines, read_import_lines
from services.labeling.imports import MAX_ROWS_PER_MESSAGE, ImportRow, ImportTally
from services.labeling.limits import check_batch
from services.labeling.project_store import BatchRecord, ProjectRecord
from services.labeling.requests import RepeatableRequest
from services.labeling.web.call import Call
from services.labeling.web.pages import RESEARCHERS, PageTable
from services.labeling.web.research_desk import (
    MAX_TYPED_CHARS,
    TypedForm,
    batches_of,
    desk_of,
    project_of,
    render_in_project,
    request_of,
)
from services.labeling.web.settings_forms import MAX_NAME_CHARS

table = PageTable()

MAX_REFUSED_SHOWN = 100
_ARCHIVE = "archive"
_ROWS = "rows"


@table.get("/projects/{project}/export", roles=RESEARCHERS)
async def show_export(call: Call) -> Response:
    """What may be downloaded."""
    project = await project_of(call)
    return await _export_page(call, project, values={}, errors={})


@table.post("/projects/{project}/export/comparisons", roles=RESEARCHERS)
async def download_comparisons(call: Call) -> Response:
    """Stream the answers that are wanted."""
    project = await project_of(call)
    batches = await batches_of(call, project)
    typed = TypedForm(call.form)
    wanted = _read_filter(typed, project, batches)
    options = ExportOptions(
        format=ExportFormat(typed.choice("format", tuple(ExportFormat))),
        votes=Votes(typed.choice("votes", tuple(Votes))),
    )
    packing = typed.choice("packing", (_ARCHIVE, _ROWS))
    if typed.errors:
        return await _export_page(call, project, values=typed.values, errors=typed.errors, status=400)
    parameters: Mapping[str, Json] = {
        "project": project.name,
        "batch": wanted.batch or None,
        "format": options.format.value,
        "votes": options.votes.value,
        "labeler_groups": None if wanted.fold is None else wanted.fold.num_folds,
        "labeler_group": None if wanted.fold is None else wanted.fold.fold,
        "all_but_the_group": wanted.fold is not None and wanted.fold.complement,
        "with_superseded": wanted.with_superseded,
        "with_onboarding": wanted.with_onboarding,
    }
    await _note(call, project, "project.export", parameters)
    stem = f"{wanted.batch or project.name}.{options.format.value}"
    file_name = f"{stem}.jsonl"
    pages = _counted(call, _pages(call, wanted))
    if packing == _ROWS:
        return _download(comparison_lines(pages, options), file_name, "application/x-ndjson")
    about = ExportAbout(command="export on the labeling site", parameters=parameters, file_name=file_name)
    return _download(comparison_archive(pages, options, about), f"{stem}.zip", "application/zip")


@table.post("/projects/{project}/export/demonstrations", roles=RESEARCHERS)
async def download_demonstrations(call: Call) -> Response:
    """Stream the texts that people wrote, for supervised fine-tuning."""
    project = await project_of(call)
    batches = await batches_of(call, project)
    typed = TypedForm(call.form)
    batch = typed.choice("batch", ("", *(one.name for one in batches)))
    if typed.errors:
        return await _export_page(call, project, values=typed.values, errors=typed.errors, status=400)
    await _note(call, project, "project.export", {"demonstrations": True, "batch": batch or None})
    pages = _pages_of_demonstrations(call, project.name, batch)
    name = f"{batch or project.name}.demonstrations.jsonl"
    return _download(demonstration_lines(pages), name, "application/x-ndjson")


@table.get("/projects/{project}/import", roles=RESEARCHERS)
async def show_import(call: Call) -> Response:
    """The form for answers that were given elsewhere."""
    project = await project_of(call)
    return await _import_page(call, project, values={"batch": "", "rows": ""}, errors={})


@table.post("/projects/{project}/import", roles=RESEARCHERS)
async def take_import(call: Call) -> Response:
    """Record the rows that are sound and report the others."""
    project = await project_of(call)
    typed = TypedForm(call.form)
    batch = typed.text("batch", max_chars=MAX_NAME_CHARS)
    typed.text("rows", max_chars=MAX_TYPED_CHARS, is_required=True)
    typed.check(lambda: check_batch(batch))
    if typed.errors:
        return await _import_page(call, project, values=typed.values, errors=typed.errors, status=400)
    text = typed.values["rows"]
    lines = await call.read(lambda: read_import_lines(text, max_text_chars=call.site.config.max_text_chars))
    try:
        tally = lines.refused + await _record(call, project, batch, lines, text)
    except BatchClosedError:
        typed.errors["batch"] = "this batch is closed"
    except BatchOfAnotherProjectError:
        typed.errors["batch"] = "belongs to another project"
    if typed.errors:
        return await _import_page(call, project, values=typed.values, errors=typed.errors, status=409)
    detail: Mapping[str, Json] = {
        "recorded": tally.num_recorded,
        "repeated": tally.num_repeated,
        "refused": tally.num_refused,
    }
    if tally.num_recorded:
        actor = call.user.name
        await call.write(
            lambda: desk_of(call).history.note(
                actor=actor, action="batch.import", subject=batch, detail=detail
            )
        )
    is_all_wrong = not tally.num_recorded and not tally.num_repeated
    return await _import_page(
        call,
        project,
        values=typed.values if tally.num_refused else {"batch": batch, "rows": ""},
        errors={},
        tally=tally,
        num_lines=lines.num_lines,
        status=400 if is_all_wrong else 200,
    )


async def _record(
    call: Call, project: ProjectRecord, batch: str, lines: ImportLines, text: str
) -> ImportTally:
    desk, site = desk_of(call), call.site
    request = request_of(call, "site.import", project.name, batch, text)
    tally = ImportTally()
    for start in range(0, len(lines.rows), MAX_ROWS_PER_MESSAGE):
        part: tuple[ImportRow, ...] = lines.rows[start : start + MAX_ROWS_PER_MESSAGE]
        named = RepeatableRequest(
            method=request.method, request_id=f"{request.request_id}-{start}", digest=request.digest
        )
        tally += await call.write(
            functools.partial(desk.imports.record, named, part, project=project.name, batch=batch),
            then=site.answers_recorded.announce,
        )
    site.metrics.answers_imported.inc(tally.num_recorded)
    return tally


def _read_filter(typed: TypedForm, project: ProjectRecord, batches: list[BatchRecord]) -> ExportFilter:
    batch = typed.choice("batch", ("", *(one.name for one in batches)))
    num_folds = typed.integer("num_folds", minimum=2, maximum=MAX_FOLDS, default=0)
    fold = typed.integer("fold", minimum=1, maximum=MAX_FOLDS, default=0)
    which = typed.choice("fold_side", ("inside", "outside"))
    chosen: LabelerFold | None = None
    if num_folds or fold:
        if not num_folds:
            typed.errors.setdefault("num_folds", "say into how many groups")
        elif not 1 <= fold <= num_folds:
            typed.errors.setdefault("fold", f"a group from 1 to {num_folds}")
        chosen = LabelerFold(num_folds=num_folds, fold=fold - 1, complement=which == "outside")
    wanted = ExportFilter(
        batch=batch,
        project=project.name,
        fold=chosen,
        with_superseded=typed.checked("with_superseded"),
        with_onboarding=typed.checked("with_onboarding"),
    )
    if not typed.errors:
        typed.check(lambda: check_export_filter(wanted))
    return wanted


def _pages(call: Call, wanted: ExportFilter) -> AsyncIterator[list[Comparison]]:
    site = call.site
    return pages_of_comparisons(
        site.labeling,
        site.threads,
        site.answers_recorded,
        ExportPace(page_comparisons=site.config.export_page_comparisons, poll_s=site.config.export_poll_s),
        wanted=wanted,
        after_comparison_id=0,
        follow=False,
    )


async def _counted(call: Call, pages: AsyncIterator[list[Comparison]]) -> AsyncIterator[list[Comparison]]:
    metrics = call.site.metrics
    with metrics.streams.labels("export").track_inprogress():
        async for page in pages:
            yield page
            metrics.comparisons_exported.inc(len(page))


async def _pages_of_demonstrations(
    call: Call, project: str, batch: str
) -> AsyncIterator[list[Demonstration]]:
    desk, limit = desk_of(call), call.site.config.export_page_comparisons
    cursor = 0
    while True:
        page = await call.read(
            functools.partial(
                desk.demonstrations.demonstrations_after, cursor, project=project, batch=batch, limit=limit
            )
        )
        if not page:
            return
        yield page
        cursor = page[-1].demonstration_id


async def _note(call: Call, project: ProjectRecord, action: str, detail: Mapping[str, Json]) -> None:
    actor = call.user.name
    await call.write(
        lambda: desk_of(call).history.note(actor=actor, action=action, subject=project.name, detail=detail)
    )


def _download(chunks: AsyncIterator[bytes], file_name: str, media_type: str) -> Response:
    # Names of projects and batches hold nothing that would need quoting.
    return StreamingResponse(
        chunks,
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="{file_name}"'},
    )


async def _export_page(
    call: Call, project: ProjectRecord, *, values: dict[str, str], errors: dict[str, str], status: int = 200
) -> Response:
    defaults = {
        "batch": "",
        "format": ExportFormat.JSONL.value,
        "votes": Votes.RAW.value,
        "packing": _ARCHIVE,
        "num_folds": "",
        "fold": "",
        "fold_side": "inside",
        "with_superseded": "",
        "with_onboarding": "",
    }
    return await render_in_project(
        call,
        "researcher_export.html",
        project,
        "export",
        status=status,
        batches=await batches_of(call, project),
        values={**defaults, **values},
        errors=errors,
        max_folds=MAX_FOLDS,
    )


async def _import_page(
    call: Call,
    project: ProjectRecord,
    *,
    values: dict[str, str],
    errors: dict[str, str],
    tally: ImportTally | None = None,
    num_lines: int = 0,
    status: int = 200,
) -> Response:
    return await render_in_project(
        call,
        "researcher_import.html",
        project,
        "import",
        status=status,
        values=values,
        errors=errors,
        tally=tally,
        num_lines=num_lines,
        max_refused=MAX_REFUSED_SHOWN,
        max_body_mib=call.site.config.web_max_body_bytes / 2**20,
        nonce=call.request_id,
    )
