"""Quality, export and import on the researcher's pages, against the report and other readers."""

import gzip
import html
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from andon.corpus.loaders import iter_comparisons, load_comparisons, load_documents
from services.labeling.accounts import Role
from services.labeling.answers import AnswerDraft, Ranking, Telemetry, decision_from_preference
from services.labeling.assignment import LeaseOrder
from services.labeling.demonstration_store import DemonstrationDraft, DemonstrationStore
from services.labeling.errors import AnswerExportedError
from services.labeling.export import LabelerFold
from services.labeling.project_store import ProjectStore
from services.labeling.projects import BatchSettings, ProjectSettings
from services.labeling.quality.report import quality_report
from services.labeling.quality_store import QualityStore
from services.labeling.requests import RepeatableRequest
from services.labeling.service import now_us
from services.labeling.site_store import SiteStore
from services.labeling.store import LabelingStore
from services.labeling.tasks import Candidate, TaskDraft, TaskKind
from services.labeling.web.figures import coefficient, percent
from tests.site import Person, SiteUnderTest

HOUR_US = 3_600_000_000


def rows_of(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.decode().splitlines()]


class Exchange:
    """A site with answers of three labelers and a researcher in project "p"."""

    def __init__(self, site: SiteUnderTest) -> None:
        self.site = site
        self.rita: Person = site.person("rita", Role.RESEARCHER)
        self.store = LabelingStore(site.database, clock=now_us)
        self.items = SiteStore(site.database, self.store, clock=now_us)
        self.projects = ProjectStore(site.database, clock=now_us)
        self._requests = 0
        self.projects.create_project("p", ProjectSettings(), "", actor="setup")

    def request(self) -> RepeatableRequest:
        self._requests += 1
        return RepeatableRequest(method="setup", request_id=str(self._requests), digest="d")

    def fill(self, *, num_tasks: int = 6) -> None:
        drafts = [
            TaskDraft(
                document=f"Document {number}",
                document_id=f"d{number}",
                candidates=tuple(Candidate(text=f"Text {number}.{index}") for index in range(2)),
                overlap_count=4,
            )
            for number in range(num_tasks)
        ]
        self.store.submit_tasks(self.request(), "b", drafts, project="p", batch_settings=BatchSettings())
        for person, wrong in (("ann", 0), ("ben", 3), ("cleo", 2), ("rita", 5)):
            self.answer(person, wrong=wrong)

    def answer(self, person: str, *, wrong: int) -> None:
        """Answer everything; the first candidate is the better one except in every ``wrong``-th item."""
        order = LeaseOrder(labeler_id=person, batch="b", max_tasks=100, duration_us=HOUR_US)
        answers = []
        for task in self.store.lease_tasks(order):
            item = self.items.item(task.lease_id, person)
            best = 1 if wrong and item.task_id % wrong == 0 else 0
            preference = 2 if item.shown_order.index(best) == 0 else 8
            answers.append(
                AnswerDraft(
                    lease_id=task.lease_id,
                    decision=decision_from_preference(preference),
                    preference=preference,
                    telemetry=Telemetry(active_us=20_000_000 + item.task_id),
                )
            )
        self.store.submit_answers(self.request(), person, answers)

    def download(self, **fields: str) -> Any:
        wanted = {"format": "jsonl", "votes": "raw", "packing": "rows", "batch": "", "fold_side": "inside"}
        page = "/projects/p/export"
        return self.rita.submit(f"{page}/comparisons", {**wanted, **fields}, page=page)


@pytest.fixture
def exchange(start_site: Callable[..., SiteUnderTest]) -> Exchange:
    return Exchange(start_site(export_page_comparisons=5))


def test_the_quality_page_shows_the_reports_figures(exchange: Exchange) -> None:
    exchange.fill()
    report = quality_report(QualityStore(exchange.site.database).judged_answers("p"))
    text = html.unescape(exchange.rita.get("/projects/p/quality").text)
    rows = dict(
        re.findall(r'<tr><th scope="row">([^<]+)<span class="help">.*?<strong>([^<]*)</strong>', text)
    )
    shares = report.overall.agreement
    assert rows["Labeler with labeler"] == percent(shares.labeler_labeler.value)
    assert rows["Labeler with researcher"] == percent(shares.labeler_researcher.value)
    assert rows["Labeler with the majority"] == percent(shares.labeler_majority.value)
    assert rows["Fleiss' kappa"] == coefficient(report.overall.fleiss_kappa.value)
    assert rows["Krippendorff's alpha"] == coefficient(report.overall.krippendorff_alpha.value)
    assert report.pairs is not None
    assert len(report.pairs) == 6
    for pair in report.pairs:
        found = re.search(rf"<tr><th scope=\"row\">{pair.a}, {pair.b}</th>(.*?)</tr>", text, re.DOTALL)
        assert found is not None
        assert re.findall(r"<strong>([^<]*)</strong>", found[1]) == [
            percent(pair.agreement.value),
            coefficient(pair.cohen_kappa.value),
        ]
    assert "24 answers by 3 labelers and 1 researcher" in text
    one = html.unescape(exchange.rita.get("/projects/p/quality/labeler?name=cleo").text)
    cleo = next(each for each in report.labelers if each.labeler_id == "cleo")
    assert f"<strong>{percent(cleo.with_majority.value)}</strong>" in one


def test_figures_by_hand_two_people_who_agree_on_three_of_four(exchange: Exchange) -> None:
    lines = [
        {"summaries": ["a", "b"], "choice": choice, "document": f"d{number}", "worker": worker}
        for number, (x, y) in enumerate([(0, 0), (0, 0), (1, 1), (1, 0)])
        for worker, choice in (("x", x), ("y", y))
    ]
    page = "/projects/p/import"
    fields = {"batch": "i", "rows": "\n".join(map(json.dumps, lines))}
    exchange.rita.submit(page, fields, page=page)
    text = exchange.rita.get("/projects/p/quality?batch=i").text
    row = re.search(r"<tr><th scope=\"row\">x, y</th>(.*?)</tr>", text, re.DOTALL)
    assert row is not None
    # Observed 3/4; by chance 2/4 * 3/4 + 2/4 * 1/4 = 1/2; kappa = (3/4 - 1/2) / (1 - 1/2) = 1/2.
    assert re.findall(r"<strong>([^<]*)</strong>", row[1]) == ["75.0\u202f%", "0.50"]


def test_an_empty_project_has_a_quality_page(exchange: Exchange) -> None:
    page = exchange.rita.get("/projects/p/quality")
    assert (page.status_code, "Nothing has been answered here yet" in page.text) == (200, True)


def test_json_lines_hold_everything_and_are_read_back(exchange: Exchange, tmp_path: Path) -> None:
    exchange.fill()
    answer = exchange.download()
    assert answer.headers["content-disposition"] == 'attachment; filename="p.jsonl.jsonl"'
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    path = tmp_path / "rows.jsonl"
    path.write_bytes(answer.content)
    records = load_comparisons(str(path))
    assert len(records) == 24
    assert {record.labeler_id for record in records} == {"ann", "ben", "cleo", "rita"}
    assert all(record.telemetry is not None and record.preference in (2, 8) for record in records)
    assert {record.purpose for record in records} == {"ordinary"}


def test_a_batch_a_group_of_labelers_and_the_rest_are_told_apart(exchange: Exchange) -> None:
    exchange.fill()
    groups = [
        {row["labeler_id"] for row in rows_of(exchange.download(num_folds="3", fold=str(group)).content)}
        for group in (1, 2, 3)
    ]
    for number, names in enumerate(groups):
        fold = LabelerFold(num_folds=3, fold=number)
        assert names == {name for name in ("ann", "ben", "cleo", "rita") if fold.takes(name)}
    outside = exchange.download(num_folds="3", fold="2", fold_side="outside")
    assert {row["labeler_id"] for row in rows_of(outside.content)} == groups[0] | groups[2]
    wrong = exchange.download(num_folds="3", fold="4")
    assert (wrong.status_code, "A group from 1 to 3" in wrong.text) == (400, True)
    assert exchange.download(batch="nowhere").status_code == 400
    assert exchange.download(format="csv").status_code == 400


@pytest.mark.parametrize("votes", ["raw", "majority"])
def test_an_archive_holds_rows_and_a_manifest_that_names_what_was_left_out(
    exchange: Exchange, votes: str
) -> None:
    exchange.fill()
    lease = exchange.store.submit_tasks(
        exchange.request(),
        "b",
        [TaskDraft(document="Tied", candidates=(Candidate(text="a"), Candidate(text="b")))],
        project="p",
    )
    assert not lease.repeated
    order = LeaseOrder(labeler_id="dan", batch="b", max_tasks=100, duration_us=HOUR_US)
    (task,) = [one for one in exchange.store.lease_tasks(order) if one.document == "Tied"]
    tie = AnswerDraft(lease_id=task.lease_id, decision=Ranking(tiers=((0, 1),)))
    exchange.store.submit_answers(exchange.request(), "dan", [tie])
    answer = exchange.download(format="tldr", votes=votes, packing="archive")
    assert answer.headers["content-type"] == "application/zip"
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    assert archive.namelist() == ["p.tldr.jsonl", "p.tldr.jsonl.manifest.json"]
    rows = rows_of(archive.read("p.tldr.jsonl"))
    manifest = json.loads(archive.read("p.tldr.jsonl.manifest.json"))
    assert manifest["parameters"]["comparison_count"] == 25
    assert manifest["outputs"][0]["row_count"] == len(rows)
    removed = {one["name"]: one["removed_count"] for one in manifest["filters"]}
    assert removed["tie"] == 1
    if votes == "raw":
        assert len(rows) == 24
    else:
        # By hand, items 1 to 6: ben and cleo are wrong on 6 (two of four: no majority), else the first wins.
        assert removed["split_vote"] == 1
        assert [row["choice"] for row in rows] == [0] * 5
        assert {row["worker"] for row in rows} == {"majority"}


def test_what_was_exported_stands_and_the_export_is_in_the_trail(exchange: Exchange) -> None:
    exchange.fill()
    exchange.download()
    (answer,) = exchange.items.own_answers("ann", project="p", limit=1)
    corrected = AnswerDraft(lease_id="", decision=decision_from_preference(1), preference=1)
    with pytest.raises(AnswerExportedError):
        exchange.items.correct(exchange.request(), "ann", answer.comparison_id, corrected)
    assert "exported" in exchange.rita.get("/projects/p/changes").text
    # A link that is followed by itself exports nothing.
    assert exchange.rita.get("/projects/p/export/comparisons").status_code == 405


def test_written_texts_go_out_as_documents_for_fine_tuning(exchange: Exchange, tmp_path: Path) -> None:
    exchange.store.submit_tasks(
        exchange.request(),
        "b",
        [TaskDraft(document=f"Post {number}", candidates=(), kind=TaskKind.WRITE) for number in range(7)],
        project="p",
    )
    texts = DemonstrationStore(exchange.site.database, clock=now_us)
    order = LeaseOrder(labeler_id="ann", batch="b", max_tasks=100, duration_us=HOUR_US)
    for task in exchange.store.lease_tasks(order, kinds=(TaskKind.WRITE,)):
        draft = DemonstrationDraft(lease_id=task.lease_id, text=f"Summary of {task.document}")
        texts.demonstrate(exchange.request(), "ann", draft)
    page = "/projects/p/export"
    answer = exchange.rita.submit(f"{page}/demonstrations", {"batch": "b"}, page=page)
    path = tmp_path / "texts.jsonl"
    path.write_bytes(answer.content)
    documents = load_documents(str(path))
    assert sorted((one.document, one.summaries) for one in documents) == [
        (f"Post {number}", (f"Summary of Post {number}",)) for number in range(7)
    ]


def test_an_import_records_sound_rows_and_reports_the_others(exchange: Exchange) -> None:
    page = "/projects/p/import"
    rows = [
        json.dumps({"prompt": "Q", "chosen": "yes", "rejected": "no"}),
        "<b>not json</b>",
        json.dumps({"document": "d", "summaries": ["a", "b"], "choice": 7}),
    ]
    fields = {"batch": "old", "rows": "\n".join(rows), "nonce": "one"}
    answer = exchange.rita.submit(page, fields, page=page)
    text = html.unescape(answer.text)
    assert answer.status_code == 200
    assert "1 answer recorded" in text
    assert "2 rows refused" in text
    assert "<code>NOT_JSON</code>" in text
    assert "<code>INVALID_ANSWER</code>" in text
    assert "<b>not json" not in answer.text
    assert exchange.store.progress("old").num_answers == 1
    again = exchange.rita.submit(page, fields, page=page)
    assert "1 had been recorded by this form before" in html.unescape(again.text)
    assert exchange.store.progress("old").num_answers == 1
    for wrong, words in (
        ({"batch": "", "rows": "x"}, "letters, digits"),
        ({"batch": "old", "rows": " "}, "Is needed"),
        ({"batch": "old", "rows": "{}"}, "NO_COMPARISON"),
    ):
        refused = exchange.rita.submit(page, wrong, page=page)
        assert (refused.status_code, words in refused.text) == (400, True)


def test_real_votes_go_in_and_come_out_unchanged(
    exchange: Exchange, shared_dir: Path, tmp_path: Path
) -> None:
    source = shared_dir / "data" / "pandalm_human" / "comparisons.dev.jsonl.gz"
    text = gzip.decompress(source.read_bytes()).decode()
    page = "/projects/p/import"
    exchange.rita.submit(page, {"batch": "panda", "rows": text}, page=page)
    path = tmp_path / "out.jsonl"
    path.write_bytes(exchange.download(batch="panda").content)

    def votes(origin: Path) -> list[tuple[Any, ...]]:
        return sorted(
            (record.document, tuple(one.text for one in record.candidates), record.labeler_id, record.tiers)
            for _, record in iter_comparisons(str(origin), on_refused=lambda *_: pytest.fail("a row refused"))
        )

    assert votes(path) == votes(source)
    assert len(votes(path)) > 2000
