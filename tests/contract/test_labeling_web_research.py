"""The researcher's pages over real HTTP: settings, uploads, onboarding, disagreements, flags, messages."""

import html
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from services.labeling.accounts import Role
from services.labeling.answers import AnswerDraft, Flag, Rating, decision_from_preference
from services.labeling.assignment import LeaseOrder
from services.labeling.history_store import HistoryStore
from services.labeling.onboarding_store import OnboardingStore, Stage
from services.labeling.project_store import ProjectStore
from services.labeling.projects import BatchMode, BatchSettings, OnboardingSettings, ProjectSettings
from services.labeling.requests import RepeatableRequest
from services.labeling.service import now_us
from services.labeling.site_store import SiteStore
from services.labeling.store import LabelingStore
from services.labeling.tasks import Candidate, TaskDraft
from tests.site import Person, SiteUnderTest

HOUR_US = 3_600_000_000
ATTACK = "<script>alert('x')</script>\"'&"


class Desk:
    """A site with a researcher, a project "p" and a batch "b"."""

    def __init__(self, site: SiteUnderTest) -> None:
        self.site = site
        self.rita: Person = site.person("rita", Role.RESEARCHER)
        self.projects = ProjectStore(site.database, clock=now_us)
        self.store = LabelingStore(site.database, clock=now_us)
        self.items = SiteStore(site.database, self.store, clock=now_us)
        self.history = HistoryStore(site.database, clock=now_us)
        self._requests = 0
        self.projects.create_project("p", ProjectSettings(), "Read well.", actor="setup")
        self.projects.create_batch("p", "b", BatchSettings(), actor="setup")

    def request(self) -> RepeatableRequest:
        self._requests += 1
        return RepeatableRequest(method="setup", request_id=str(self._requests), digest="d")

    def add(self, *names: str, overlap: int = 2, **fields: Any) -> list[int]:
        drafts = [
            TaskDraft(
                document=f"Document {name}",
                candidates=(
                    Candidate(text=f"{name} left", source="from-policy"),
                    Candidate(text=f"{name} right", source="from-people"),
                ),
                overlap_count=overlap,
                **fields,
            )
            for name in names
        ]
        return self.store.submit_tasks(self.request(), "b", drafts, project="p").task_ids

    def answer(self, labeler: str, best: int, **fields: Any) -> list[int]:
        """Answer all that this labeler gets: the submitter's candidate ``best`` is better."""
        if self.site.accounts.find_user(labeler) is None:
            self.site.add_account(labeler, Role.LABELER)
        order = LeaseOrder(labeler_id=labeler, batch="b", max_tasks=100, duration_us=HOUR_US)
        answers = []
        for task in self.store.lease_tasks(order):
            first = self.items.item(task.lease_id, labeler).shown_order.index(best) == 0
            preference = 2 if first else 8
            answers.append(
                AnswerDraft(
                    lease_id=task.lease_id,
                    decision=decision_from_preference(preference),
                    preference=preference,
                    **fields,
                )
            )
        return self.store.submit_answers(self.request(), labeler, answers).comparison_ids

    def state_of(self, page: str) -> str:
        found = re.search(r'name="state" value="([^"]+)"', self.rita.get(page).text)
        assert found is not None
        return found[1]

    def nonce_of(self, page: str) -> str:
        found = re.search(r'name="nonce" value="([0-9a-f]{32})"', self.rita.get(page).text)
        assert found is not None
        return found[1]


@pytest.fixture
def desk(start_site: Callable[..., SiteUnderTest]) -> Desk:
    return Desk(start_site())


PROJECT_FIELDS = {
    "title": "Posts",
    "instructions": "Choose the better one.\nAlways.",
    "rating_axes": "yes",
    "training_count": "2",
    "screening_count": "5",
    "min_agreement": "72.5",
    "max_item_s": "90",
    "max_attempts": "3",
}
BATCH_FIELDS = {
    "mode": "online",
    "calibration_share": "15",
    "drift_share": "5",
    "gold_share": "2.5",
    "repeat_share": "10",
    "max_answers_per_labeler": "200",
    "priority": "-4",
}


def test_a_project_is_made_shown_and_changed(desk: Desk) -> None:
    rita = desk.rita
    made = rita.submit("/new-project", {"project": "posts-1", **PROJECT_FIELDS}, page="/new-project")
    assert (made.status_code, made.headers["location"]) == (303, "/projects/posts-1")
    project = desk.projects.project("posts-1")
    assert project.settings == ProjectSettings(
        title="Posts",
        rating_axes=True,
        onboarding=OnboardingSettings(
            training_count=2, screening_count=5, min_agreement=0.725, max_item_s=90.0, max_attempts=3
        ),
    )
    assert project.instructions == "Choose the better one.\nAlways."
    page = "/projects/posts-1/settings"
    same = rita.submit(page, {**PROJECT_FIELDS, "state": desk.state_of(page)}, page=page)
    assert same.headers["location"].endswith("done=same")
    assert desk.projects.project("posts-1") == project
    changed = {**PROJECT_FIELDS, "instructions": "Shorter.", "naive_reading": "yes"}
    rita.submit(page, {**changed, "state": desk.state_of(page)}, page=page)
    project = desk.projects.project("posts-1")
    assert (project.instructions_version, project.settings.naive_reading) == (2, True)
    versions = rita.get("/projects/posts-1/instructions").text
    assert versions.index("Shorter.") < versions.index("Choose the better one.")
    changes = rita.get("/projects/posts-1/changes").text
    assert "naive reading: no → <strong>yes</strong>" in changes
    assert [change.actor for change in desk.history.changes("posts-1")] == ["rita"] * 4


WRONG_PROJECTS = [
    ("project", "a b", "letters, digits"),
    ("project", "", "letters, digits"),
    ("project", "..", "Must hold a letter or a digit"),
    ("project", "p", "There is a project of this name already"),
    ("title", "t" * 201, "201 characters; at most 200"),
    ("instructions", "i" * 50_001, "50,001 characters"),
    ("training_count", "101", "from 0 to 100"),
    ("screening_count", "many", "whole number"),
    ("min_agreement", "101", "from 0 to 100"),
    ("max_attempts", "0", "from 1 to 10"),
    ("max_item_s", "0", "more than 0"),
]


def test_a_refused_project_keeps_what_was_typed_and_says_what_is_wrong_beside_it(
    desk: Desk,
) -> None:
    for field, value, words in WRONG_PROJECTS:
        fields = {"project": "new", **PROJECT_FIELDS, field: value}
        refused = desk.rita.submit("/new-project", fields, page="/new-project")
        assert refused.status_code == 400
        beside = re.search(rf'id="{field}-error">([^<]*)<', refused.text)
        assert beside is not None, field
        assert words in beside[1]
        assert "Choose the better one." in refused.text or field == "instructions"
    assert [project.name for project in desk.projects.projects()] == ["default", "p"]


def test_somebody_elses_change_is_not_overwritten_unseen(desk: Desk) -> None:
    page = "/projects/p/settings"
    state = desk.state_of(page)
    desk.projects.update_project("p", ProjectSettings(title="Theirs"), "Read well.", actor="carl")
    answer = desk.rita.submit(page, {**PROJECT_FIELDS, "state": state}, page=page)
    assert answer.status_code == 409
    assert "Somebody else has changed these settings" in answer.text
    assert 'value="Posts"' in answer.text
    assert desk.projects.project("p").title == "Theirs"


def test_a_batch_is_made_and_its_rules_are_changed(desk: Desk) -> None:
    rita = desk.rita
    made = rita.submit(
        "/projects/p/new-batch", {"batch": "w-1", **BATCH_FIELDS}, page="/projects/p/new-batch"
    )
    assert made.headers["location"] == "/projects/p/batches/w-1?done=made"
    wanted = BatchSettings(
        mode=BatchMode.ONLINE,
        calibration_share=0.15,
        drift_share=0.05,
        gold_share=0.025,
        repeat_share=0.1,
        max_answers_per_labeler=200,
        priority=-4,
    )
    assert desk.projects.batch("w-1").settings == wanted
    page = "/projects/p/batches/w-1"
    fields = {**BATCH_FIELDS, "is_closed": "yes", "max_answers_per_labeler": "", "state": desk.state_of(page)}
    assert rita.submit(f"{page}/rules", fields, page=page).headers["location"] == f"{page}?done=saved"
    settings = desk.projects.batch("w-1").settings
    assert (settings.is_closed, settings.max_answers_per_labeler) == (True, None)
    closed = rita.submit(f"{page}/tasks", {"tasks": task_line("x"), "purpose": "ordinary"}, page=page)
    assert closed.status_code == 400
    assert "This batch is closed and takes no tasks" in closed.text


WRONG_BATCHES = [
    ("batch", "b", "There is a batch of this name already"),
    ("batch", "ä", "letters, digits"),
    ("mode", "weekly", "Choose one of those offered"),
    ("calibration_share", "91", "from 0 to 90"),
    ("drift_share", "80", "make 107.5 % together"),
    ("gold_share", "-1", "from 0 to 90"),
    ("priority", "1000001", "whole number"),
    ("max_answers_per_labeler", "0", "whole number from 1"),
]


def test_a_refused_batch_says_why_beside_the_field(desk: Desk) -> None:
    page = "/projects/p/new-batch"
    for field, value, words in WRONG_BATCHES:
        refused = desk.rita.submit(page, {"batch": "new", **BATCH_FIELDS, field: value}, page=page)
        assert refused.status_code == 400
        shown = "calibration_share" if field == "drift_share" else field
        beside = re.search(rf'id="{shown}-error">([^<]*)<', refused.text)
        assert beside is not None, field
        assert words in beside[1]
        assert f'name="{field}" value="{value}"' in refused.text or field == "mode"
    assert [batch.name for batch in desk.projects.batches("p")] == ["b"]


def task_line(name: str, **fields: Any) -> str:
    return json.dumps({"document": f"Document {name}", "candidates": [f"{name} 1", f"{name} 2"], **fields})


def test_tasks_are_taken_in_once_however_often_the_form_is_sent(desk: Desk) -> None:
    page = "/projects/p/batches/b"
    fields = {
        "tasks": "\n".join([task_line("x"), "", task_line("y", overlap=1)]),
        "overlap": "3",
        "purpose": "ordinary",
        "nonce": desk.nonce_of(page),
    }
    for _ in range(2):
        answer = desk.rita.submit(f"{page}/tasks", fields, page=page)
        assert answer.headers["location"] == f"{page}?done=added&added=2"
    progress = desk.store.progress("b")
    assert (progress.num_tasks, progress.num_slots) == (2, 4)
    assert "2 tasks added" in desk.rita.get(f"{page}?done=added&added=2").text
    assert [change.action for change in desk.history.changes("p")].count("batch.add_tasks") == 1


def test_a_bad_line_is_named_and_nothing_is_taken_in(desk: Desk) -> None:
    page = "/projects/p/batches/b"
    typed = "\n".join(
        [task_line("x"), '{"document": "no candidates"}', task_line("y", purpose="gold"), ATTACK]
    )
    answer = desk.rita.submit(f"{page}/tasks", {"tasks": typed, "purpose": "ordinary"}, page=page)
    assert answer.status_code == 400
    text = html.unescape(answer.text)
    assert "Line 2: candidates: 0 candidates; 2 to 9 are needed" in text
    assert "Line 3: expected: gold, training and screening items have one, others have none" in text
    assert "Line 4: is not JSON" in text
    assert html.escape(ATTACK, quote=False) in answer.text.replace("&#34;", '"').replace("&#39;", "'")
    assert "<script>alert" not in answer.text
    assert desk.store.progress("b").num_tasks == 0


def test_onboarding_items_come_in_and_a_researcher_may_overrule(desk: Desk) -> None:
    page = "/projects/p/onboarding"
    fields = {
        "tasks": task_line("t", expected=[[1], [0]], explanation="The second is right."),
        "purpose": "screening",
        "batch": "p.onboarding",
    }
    answer = desk.rita.submit(f"{page}/items", fields, page=page)
    assert answer.headers["location"] == f"{page}?done=added&added=1"
    shown = html.unescape(desk.rita.get(page).text)
    assert "B > A" in shown
    assert "The second is right." in shown
    wrong = desk.rita.submit(f"{page}/items", {**fields, "tasks": task_line("u")}, page=page)
    assert "Line 1: expected" in wrong.text
    desk.site.add_account("ann", Role.LABELER)
    unknown = desk.rita.submit(f"{page}/decide", {"labeler_id": "nobody", "decision": "admit"}, page=page)
    assert unknown.status_code == 400
    assert "There is no account of this name" in unknown.text
    for decision, stage in (("admit", Stage.ADMITTED), ("refuse", Stage.FAILED)):
        desk.rita.submit(f"{page}/decide", {"labeler_id": "ann", "decision": decision}, page=page)
        attempts = OnboardingStore(desk.site.database, clock=now_us).attempts("p")
        assert (attempts[-1].stage, attempts[-1].decided_by) == (stage, "rita")
    assert "by rita" in desk.rita.get(page).text


def test_an_item_opens_blind_and_what_a_reviewer_asks_for_is_recorded(desk: Desk) -> None:
    (task,) = desk.add("x")
    desk.answer("ann", 0, note=ATTACK)
    desk.answer("ben", 1)
    listed = desk.rita.get("/projects/p/disagreements").text
    assert f'href="/projects/p/items/{task}"' in listed
    assert "1 : 1" in listed
    page = f"/projects/p/items/{task}"
    blind = desk.rita.get(page).text
    assert "x left" in blind
    for hidden in ("from-policy", "from-people", "ann", "ben", "alert(", "better"):
        assert hidden not in blind.partition("<main")[2]
    desk.rita.submit(f"{page}/reveal", page=page)
    shown = desk.rita.get(page).text
    assert "before judging" in shown
    for told in ("from-policy", "from-people", ">ann<", ">ben<"):
        assert told in shown
    assert "<script>alert" not in shown
    assert html.escape(ATTACK, quote=False) in shown.replace("&#34;", '"').replace("&#39;", "'")
    assert desk.history.changes("p")[0].action == "item.reveal"


def test_a_reviewer_judges_on_the_work_page_and_then_sees_the_answers(desk: Desk) -> None:
    (task,) = desk.add("x")
    desk.answer("ann", 0)
    page = f"/projects/p/items/{task}"
    sent = desk.rita.submit(f"{page}/judge", page=page)
    assert (sent.status_code, sent.headers["location"]) == (303, "/work/p")
    lease = desk.store.lease_tasks(LeaseOrder(labeler_id="rita", batch="b", max_tasks=5, duration_us=HOUR_US))
    assert lease == []  # it is theirs already
    item = desk.items.next_item("rita", project="p", duration_us=HOUR_US)
    assert item is not None
    assert item.task_id == task
    answer = AnswerDraft(lease_id=item.lease_id, decision=decision_from_preference(1), preference=1)
    desk.store.submit_answers(desk.request(), "rita", [answer])
    shown = desk.rita.get(page).text
    assert "You judged this item before you saw the answers." in shown
    assert ">ann<" in shown


def test_a_screened_project_admits_the_reviewer_who_judges(desk: Desk) -> None:
    settings = ProjectSettings(onboarding=OnboardingSettings(screening_count=1, min_agreement=1.0))
    desk.projects.update_project("p", settings, "Read well.", actor="setup")
    (task,) = desk.add("x")
    page = f"/projects/p/items/{task}"
    desk.rita.submit(f"{page}/judge", page=page)
    (attempt,) = OnboardingStore(desk.site.database, clock=now_us).attempts("p")
    assert (attempt.labeler_id, attempt.stage, attempt.decided_by) == ("rita", Stage.ADMITTED, "rita")
    assert desk.history.changes("p")[0].action == "labeler.admit"


def test_a_message_reaches_its_labeler_and_nobody_else(desk: Desk) -> None:
    (task,) = desk.add("x")
    desk.answer("ann", 0)
    desk.answer("ben", 1)
    page = f"/projects/p/items/{task}"
    desk.rita.submit(f"{page}/reveal", page=page)
    fields = {"labeler_id": "ann", "text": f"Why? {ATTACK}", "nonce": "n1"}
    for _ in range(2):
        assert desk.rita.submit(f"{page}/message", fields, page=page).status_code == 303
    empty = desk.rita.submit(f"{page}/message", {"labeler_id": "ann", "text": "  "}, page=page)
    assert (empty.status_code, "Write something." in empty.text) == (400, True)
    stranger = desk.rita.submit(f"{page}/message", {"labeler_id": "nobody", "text": "hi"}, page=page)
    assert stranger.status_code == 404
    threads = desk.rita.get("/projects/p/messages").text
    assert threads.count(page) == 1
    shown = desk.rita.get(page).text
    assert shown.count("Why? &lt;script&gt;") == 1
    elsewhere = desk.rita.submit("/projects/default/items/1/message", {"labeler_id": "ann", "text": "x"})
    assert elsewhere.status_code == 404


def test_flagged_candidates_wait_until_they_are_dealt_with(desk: Desk) -> None:
    desk.add("x")
    (answer,) = desk.answer("ann", 0, ratings=(Rating(flags=(Flag.PERSONAL_DATA,)), Rating()))
    page = "/projects/p/flags"
    assert "personal data" in desk.rita.get(page).text.partition("<article")[2]
    assert "Nothing waits here." in desk.rita.get(f"{page}?flag=harmful").text
    desk.rita.submit(f"{page}/{answer}/seen", {"note": "told them"}, page=page)
    assert "Nothing waits here." in desk.rita.get(page).text
    assert "Dealt with by rita" in desk.rita.get(f"{page}?seen=yes").text
    assert desk.rita.submit(f"{page}/99/seen", page=page).status_code == 404


def test_live_progress_and_people_are_shown(desk: Desk) -> None:
    desk.add("x", "y", overlap=2)
    desk.answer("ann", 0)
    for page in ("/projects", "/projects/p", "/projects/p/batches/b", "/projects/p/labelers"):
        text = desk.rita.get(page).text
        assert "data-live" in text
        assert 'http-equiv="refresh"' in text or "/labelers" in page or "/batches/" in page
    assert "2 / 4" in desk.rita.get("/projects/p").text
    assert ">ann<" in desk.rita.get("/projects/p/labelers").text


NOT_THERE = [
    "/projects/nowhere",
    "/projects/nowhere/quality",
    "/projects/p%00",
    "/projects/p/batches/nowhere",
    "/projects/default/batches/b",
    "/projects/p/items/1",
    "/projects/p/items/999999999999999999999",
    "/projects/p/items/x",
    "/projects/p/quality?batch=nowhere",
    "/projects/p/quality/labeler?name=nobody",
]


def test_what_is_not_there_is_a_page_that_says_so(desk: Desk) -> None:
    for path in NOT_THERE:
        assert desk.rita.get(path).status_code == 404, path


RESEARCH_PAGES = [
    "/projects",
    "/new-project",
    *(
        f"/projects/p{path}"
        for path in (
            "",
            "/settings",
            "/instructions",
            "/changes",
            "/new-batch",
            "/batches/b",
            "/onboarding",
            "/quality",
            "/disagreements",
            "/items/1",
            "/flags",
            "/labelers",
            "/messages",
            "/export",
            "/import",
        )
    ),
]


def test_every_page_is_for_researchers_and_admins_only(desk: Desk) -> None:
    desk.add("x")
    labeler = desk.site.person("ann", Role.LABELER)
    admin = desk.site.person("root", Role.ADMIN)
    stranger = desk.site.stranger()
    for page in RESEARCH_PAGES:
        assert desk.rita.get(page).status_code == 200, page
        assert admin.get(page).status_code == 200, page
        assert labeler.get(page).status_code == 403, page
        assert stranger.get(page).headers["location"].startswith("/sign-in"), page
    assert "/projects" not in labeler.get("/cord").text
