"""A labeler's way on the site: instructions, onboarding, earlier answers, texts, messages."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from services.labeling import schema
from services.labeling.accounts import Role
from services.labeling.export import ExportFilter
from services.labeling.message_store import MessageStore
from services.labeling.projects import OnboardingSettings, ProjectSettings
from services.labeling.quality.records import Purpose
from services.labeling.requests import RepeatableRequest
from services.labeling.service import now_us
from services.labeling.tasks import TaskKind
from tests.site import Person, StartSite
from tests.work_site import (
    WorkSite,
    checked,
    compare,
    field,
    find_form,
    hidden,
    open_form,
    send,
    write,
)

FIRST_IS_BETTER = {"expected": ((0,), (1,)), "explanation": "The first one asks\nthe question."}


@pytest.fixture
def work(start_site: StartSite) -> WorkSite:
    return WorkSite(start_site())


@pytest.fixture
def ann(work: WorkSite) -> Person:
    return work.site.person("ann", Role.LABELER)


def test_each_version_of_the_instructions_is_read_before_any_item(work: WorkSite, ann: Person) -> None:
    work.add_project(instructions="Read <this> first.", tasks=[compare("good", "bad")])

    assert ann.get("/work/cats").headers["location"] == "/work/cats/instructions"
    page = ann.get("/work/cats/instructions")
    assert "Read &lt;this&gt; first." in page.text
    assert work.count(schema.leases) == 0
    # Reading a version that does not exist yet reads nothing.
    form = find_form(page, "/instructions")
    ann.post(form.action, data={**hidden(form), "version": "2"})
    assert ann.get("/work/cats").status_code == 303
    assert send(ann, form).headers["location"] == "/work/cats"
    assert send(ann, form).status_code == 303  # again is no harm
    assert field(open_form(ann), "instructions") == "1"

    work.projects.update_project("cats", ProjectSettings(), "Read this too.", actor="rita")
    assert "Instructions to read first" in ann.get("/work").text
    assert ann.get("/work/cats").headers["location"] == "/work/cats/instructions"
    page = ann.get("/work/cats/instructions")
    assert "The instructions have changed" in page.text
    send(ann, find_form(page, "/instructions"))
    assert field(open_form(ann), "instructions") == "2"
    assert [(row.version, row.labeler_id) for row in work.rows(schema.instruction_readings)] == [
        (1, "ann"),
        (2, "ann"),
    ]


def test_training_tells_at_once_and_screening_only_at_the_end(work: WorkSite, ann: Person) -> None:
    onboarding = OnboardingSettings(
        training_count=2, screening_count=2, min_agreement=1.0, max_item_s=3600.0, max_attempts=2
    )
    items = [
        compare(f"good {number}", f"bad {number}", purpose=purpose, **FIRST_IS_BETTER)
        for number, purpose in enumerate([Purpose.TRAINING] * 2 + [Purpose.SCREENING] * 4)
    ]
    work.add_project(tasks=[*items, compare("good", "bad")], onboarding=onboarding)
    assert "A few items before you begin" in ann.get("/work").text

    def better(form_page: str) -> str:
        """The mark that is right, by what the two cards say."""
        return "1" if form_page.index(">good") < form_page.index(">bad") else "9"

    # Two training items: one answered right, one wrong.
    for number, is_right in enumerate((True, False), start=1):
        page = ann.get("/work/cats")
        assert f"Item {number} of 2" in page.text
        assert "Training" in page.text
        form = find_form(page, "/answer")
        right = better(page.text)
        answer = send(ann, form, {"preference": right if is_right else str(10 - int(right))})
        assert answer.headers["location"] == f"/work/cats/feedback/{field(form, 'item')}"
        told = ann.get(answer.headers["location"]).text
        assert ("✓ Right." in told) == is_right
        assert f"<dd>{'A' if right == '1' else 'B'} is better</dd>" in told
        assert "The first one asks\nthe question." in told

    # Two screening items without a word, both wrong.
    def screen(*, right: bool) -> None:
        for number in (1, 2):
            page = ann.get("/work/cats")
            assert f"Item {number} of 2" in page.text
            form = find_form(page, "/answer")
            mark = better(page.text)
            answer = send(ann, form, {"preference": mark if right else str(10 - int(mark))})
            assert answer.headers["location"] == "/work/cats"
            assert ann.get(f"/work/cats/feedback/{field(form, 'item')}").status_code == 404
            assert ann.get(f"/work/cats/item/{field(form, 'item')}").status_code == 404

    page = ann.get("/work/cats")
    assert not [form for form in page.text.split("<form") if "/skip" in form]
    skip = ann.post("/work/cats/skip", data={**hidden(find_form(page, "/answer")), "reason": "broken"})
    assert skip.status_code == 409
    screen(right=False)
    assert ann.get("/work/cats").headers["location"] == "/work/cats/result"
    result = ann.get("/work/cats/result").text
    assert "You were not admitted this time" in result
    assert "0 % of 2" in result
    assert "✗ too few" in result
    assert "at most 3600.0 s" in result or "at most 3600 s" in result
    assert "One attempt is left" in result
    assert ann.get("/work/cats").headers["location"] == "/work/cats/result"  # it stays until they try again

    send(ann, find_form(ann.get("/work/cats/result"), "/retry"))
    screen(right=True)
    assert ann.get("/work/cats").headers["location"] == "/work/cats/result"
    assert "You are admitted" in ann.get("/work/cats/result").text
    page = ann.get("/work/cats")
    assert page.status_code == 200
    assert "0 of 1 in this batch" in page.text or "in this batch" in page.text
    assert "Your answers" not in ann.get("/work").text  # the onboarding's do not count as work


def test_who_fails_for_good_is_told_the_numbers_and_gets_no_item(work: WorkSite, ann: Person) -> None:
    onboarding = OnboardingSettings(screening_count=1, min_agreement=1.0)
    items = [compare("good", "bad", purpose=Purpose.SCREENING, **FIRST_IS_BETTER)]
    work.add_project(tasks=[*items, compare("good", "bad")], onboarding=onboarding)

    send(ann, open_form(ann), {"preference": "5"})

    result = ann.get("/work/cats", follow_redirects=True).text
    assert "You were not admitted to cats" in result
    assert "0 % of 1" in result
    assert "/retry" not in result
    ann.submit("/work/cats/retry")
    assert ann.get("/work/cats").headers["location"] == "/work/cats/result"
    assert "You were not admitted" in ann.get("/work").text


def test_a_project_that_lacks_its_items_says_so(work: WorkSite, ann: Person) -> None:
    work.add_project(tasks=[compare("good", "bad")], onboarding=OnboardingSettings(screening_count=1))
    assert "Not ready yet" in ann.get("/work/cats").text


def test_a_correction_is_a_new_record_in_the_same_order(work: WorkSite, ann: Person) -> None:
    work.add_project(tasks=[compare("good", "bad", overlap_count=2)], rating_axes=False)
    for name, person in (("ann", ann), ("ben", work.site.person("ben", Role.LABELER))):
        form = open_form(person)
        order = tuple(work.lease_of(form).shown_order)
        send(person, form, {"preference": "3", "note": "first", "flag_B": "made_up"})
        history = person.get("/work/cats/history").text
        path = f"/work/cats/item/{field(form, 'item')}"
        assert "A better" in history
        assert path in history

        again = find_form(person.get(path), path)
        assert checked(again, "preference") == "3"  # as it was on their screen
        assert field(again, "note").strip() == "first"
        assert (checked(again, "flag_A"), checked(again, "flag_B")) == (None, "made_up")
        empty = person.post(path, data=hidden(again))
        assert empty.status_code == 400
        assert 'id="preference-error"' in empty.text
        change = {"preference": "9", "note": "second"}
        first, second = (send(person, again, change) for _ in range(2))
        assert (first.status_code, second.status_code) == (303, 303)
        assert "Your change is recorded" in person.get(first.headers["location"]).text

        earlier, later = [row for row in work.rows(schema.comparisons) if row.labeler_id == name]
        assert later.supersedes_id == earlier.id
        assert (earlier.preference, later.preference) == ((3, 9) if order == (0, 1) else (7, 1))
        assert later.tiers == ([[1], [0]] if order == (0, 1) else [[0], [1]])
        assert later.shown_order == list(order)
        assert "B far better" in person.get("/work/cats/history").text


def test_a_correction_keeps_what_was_read_before_the_document(work: WorkSite, ann: Person) -> None:
    work.add_project(tasks=[compare("zero", "one")], naive_reading=True)
    send(ann, open_form(ann, action_end="/reading"), {"reading_A": "about cats", "reading_B": "doors"})
    form = open_form(ann)
    send(ann, form, {"preference": "1"})
    path = f"/work/cats/item/{field(form, 'item')}"

    again = find_form(ann.get(path), path)
    send(ann, again, {"preference": "2", "reading_A": "changed"})

    earlier, later = work.rows(schema.comparisons)
    assert later.ratings == earlier.ratings
    assert {rating["naive_reading"] for rating in later.ratings} == {"about cats", "doors"}


def test_what_has_been_exported_stands(work: WorkSite, ann: Person) -> None:
    work.add_project(tasks=[compare("good", "bad")])
    form = open_form(ann)
    send(ann, form, {"preference": "3"})
    path = f"/work/cats/item/{field(form, 'item')}"
    again = find_form(ann.get(path), path)
    work.store.note_exported(ExportFilter(), 1)

    late = send(ann, again, {"preference": "4"})

    assert late.status_code == 409
    assert "exported" in late.text
    assert "has been exported" in ann.get(path).text
    assert "See it" in ann.get("/work/cats/history").text
    assert work.count(schema.comparisons) == 1


def test_going_back_walks_through_ones_own_answers(work: WorkSite, ann: Person) -> None:
    work.add_project(tasks=[compare("good", "bad", document=f"Post {number}.") for number in range(3)])
    answered = []
    for _ in range(2):
        form = open_form(ann)
        answered.append(f"/work/cats/item/{field(form, 'item')}")
        send(ann, form, {"preference": "1"})

    now, last, first = (ann.get(path).text for path in ("/work/cats", answered[1], answered[0]))

    assert f'href="{answered[1]}" data-back' in now
    assert f'href="{answered[0]}" data-back' in last
    assert "data-back" not in first
    # The item that is open now is not an earlier answer.
    token = field(open_form(ann), "item")
    assert ann.get(f"/work/cats/item/{token}").headers["location"] == "/work/cats"


def test_a_text_is_written_kept_and_written_anew(work: WorkSite, ann: Person) -> None:
    work.add_project(tasks=[write(document="A post.")])
    form = open_form(ann)
    assert send(ann, form, {"text": "  \n "}).status_code == 400
    draft = ann.post("/work/cats/draft", data={**hidden(form), "text": "half a", "revision": "1"})
    assert draft.json() == {"kept": True}
    page = ann.get("/work/cats")
    assert field(find_form(page, "/answer"), "text").strip() == "half a"
    assert "2 words" in page.text

    first, second = (send(ann, form, {"text": "A whole\nsummary.", "note": "hm"}) for _ in range(2))

    assert (first.status_code, second.status_code) == (303, 303)
    (row,) = work.rows(schema.demonstrations)
    assert (row.text, row.note, row.labeler_id) == ("A whole\nsummary.", "hm", "ann")
    assert "Wrote 3 words" in ann.get("/work/cats/history").text
    path = f"/work/cats/item/{field(form, 'item')}"
    again = find_form(ann.get(path), path)
    assert field(again, "text").strip() == "A whole\nsummary."
    assert send(ann, again, {"text": "A better one."}).status_code == 303
    earlier, later = work.rows(schema.demonstrations)
    assert (later.text, later.supersedes_id) == ("A better one.", earlier.id)


def test_an_edited_text_must_differ(work: WorkSite, ann: Person) -> None:
    work.add_project(tasks=[write("A summary.", kind=TaskKind.EDIT)])
    form = open_form(ann)
    assert field(form, "text").strip() == "A summary."

    same = send(ann, form, {"text": "A summary. "})
    assert same.status_code == 400
    assert "Nothing is changed yet" in same.text
    assert send(ann, form, {"text": "A good summary."}).status_code == 303
    assert [row.text for row in work.rows(schema.demonstrations)] == ["A good summary."]


def test_a_text_that_comes_too_late_is_given_back(work: WorkSite, ann: Person) -> None:
    work.add_project(tasks=[write()])
    form = open_form(ann)
    work.expire(form)
    ben = work.site.person("ben", Role.LABELER)
    open_form(ben)

    late = send(ann, form, {"text": "Much <work>."})

    assert late.status_code == 409
    assert "Much &lt;work&gt;." in late.text


def test_talk_about_an_item_goes_both_ways(work: WorkSite, ann: Person) -> None:
    work.add_project(tasks=[compare("good", "bad")])
    form = open_form(ann)
    token = field(form, "item")
    path = f"/inbox/{token}"

    page = ann.get(path)
    talk = find_form(page, path)
    assert ann.post(path, data=hidden(talk)).status_code == 400
    for _ in range(2):
        assert send(ann, talk, {"text": "Is <b>this</b> a cat?"}).status_code == 303
    lease = work.lease_of(form)
    messages = MessageStore(work.site.database, clock=now_us)
    messages.write(
        RepeatableRequest(method="test", request_id="1", digest=""),
        task_id=lease.task_id,
        labeler_id="ann",
        author="rita",
        text="It is.",
    )

    assert "1 unread message" in ann.get("/work").text
    inbox = ann.get("/inbox").text
    assert path in inbox
    assert "<strong>New</strong>" in inbox
    thread = ann.get(path).text
    assert "Is &lt;b&gt;this&lt;/b&gt; a cat?" in thread
    assert thread.index("cat?") < thread.index("It is.")
    assert "unread" not in ann.get("/work").text
    with work.site.database.engine.connect() as connection:
        count = connection.execute(sa.select(sa.func.count()).select_from(schema.messages)).scalar_one()
    assert count == 2
    assert work.site.person("ben", Role.LABELER).get("/inbox").text.count("/inbox/") == 0


def test_nobody_helps_with_an_item_of_the_onboarding(work: WorkSite, ann: Person) -> None:
    items = [compare("good", "bad", purpose=Purpose.SCREENING, **FIRST_IS_BETTER)]
    work.add_project(tasks=items, onboarding=OnboardingSettings(screening_count=1))
    assert ann.get(f"/inbox/{field(open_form(ann), 'item')}").status_code == 404
