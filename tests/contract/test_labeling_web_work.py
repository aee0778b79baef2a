"""Comparing on the site without scripts: what is recorded, refused, kept and never shown."""

from __future__ import annotations

import gzip
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from services.labeling import schema
from services.labeling.accounts import Role
from services.labeling.assignment import LeaseOrder
from tests.html_pages import HtmlPage
from tests.site import StartSite
from tests.work_site import (
    BATCH,
    DOCUMENT,
    SOURCE,
    WorkSite,
    checked,
    compare,
    field,
    find_form,
    hidden,
    open_form,
    send,
)


@pytest.fixture
def work(start_site: StartSite) -> WorkSite:
    return WorkSite(start_site())


def test_a_pair_is_recorded_in_the_order_of_the_task_whichever_side_was_shown(work: WorkSite) -> None:
    work.add_project(tasks=[compare("good", "bad", overlap_count=2)])
    shown = []
    for name in ("ann", "ben"):
        person = work.site.person(name, Role.LABELER)
        form = open_form(person)
        shown.append(work.lease_of(form).shown_order)
        answer = send(person, form, {"preference": "2"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/work/cats")

    # Both orders are there, and "A is much better" says the opposite of the task in one of them.
    assert sorted(shown) == [[0, 1], [1, 0]]
    expected = {(0, 1): (2, [[0], [1]]), (1, 0): (8, [[1], [0]])}
    for row in work.rows(schema.comparisons):
        assert (row.preference, row.tiers) == expected[tuple(row.shown_order)]
        assert (row.confidence, row.origin) == (7, "site")  # 2 is three steps from the middle


def test_a_ranking_with_ties_is_recorded_in_the_order_of_the_task(work: WorkSite) -> None:
    work.add_project(tasks=[compare("zero", "one", "two", "three")])
    ann = work.site.person("ann", Role.LABELER)
    form = open_form(ann)
    order = work.lease_of(form).shown_order

    # C first; A and D equal; B last. The numbers leave gaps, as people number places after a tie.
    answer = send(ann, form, {"rank_A": "2", "rank_B": "4", "rank_C": "1", "rank_D": "2"})

    assert answer.status_code == 303
    (row,) = work.rows(schema.comparisons)
    assert row.tiers == [[order[2]], sorted([order[0], order[3]]), [order[1]]]
    assert row.preference is None


# Settings of the project, number of candidates, what is filled in; where it is refused, and in which words.
INCOMPLETE: list[tuple[dict[str, Any], int, dict[str, str], str, str]] = [
    ({}, 2, {}, "preference", "Choose how much better one of them is."),
    ({}, 2, {"preference": ""}, "preference", "Choose how much better one of them is."),
    ({}, 2, {"preference": "10"}, "preference", "A whole number from 1 to 9."),
    ({}, 2, {"rank_A": "1", "rank_B": "2"}, "preference", "Choose how much better one of them is."),
    ({"no_indifference": True}, 2, {"preference": "5"}, "preference", "This project asks you to choose"),
    ({}, 3, {}, "ranking", "Put all of them in order, the best first."),
    ({}, 3, {"rank_A": "", "rank_B": "", "rank_C": ""}, "ranking", "Put all of them in order"),
    ({}, 3, {"rank_B": "1"}, "ranking", "A and C have no place yet."),
    ({}, 3, {"preference": "3"}, "ranking", "Put all of them in order"),
    (
        {"rating_axes": True},
        2,
        {"preference": "1", "accuracy_A": "7", **{f"{axis}_B": "4" for axis in ("accuracy", "coverage")}},
        "axes_A",
        "Rate coverage, coherence and overall, or flag that you can&#39;t judge.",
    ),
]


def test_an_answer_that_is_not_complete_is_refused_beside_the_control(work: WorkSite) -> None:
    ann = work.site.person("ann", Role.LABELER)
    for number, (settings, num_texts, fields, at, words) in enumerate(INCOMPLETE):
        texts = [f"text {place}" for place in range(num_texts)]
        project = work.add_project(f"p{number}", tasks=[compare(*texts)], **settings)

        answer = send(ann, open_form(ann, project), {**fields, "note": "what I thought"})

        assert answer.status_code == 400
        assert re.search(rf'id="{at}-error">{re.escape(words)}', answer.text), (fields, answer.text)
        form = find_form(answer, "/answer")
        assert field(form, "note").strip() == "what I thought"  # what was entered is not lost
        if num_texts > 2:
            sent_ranks = {name: value for name, value in fields.items() if name.startswith("rank_")}
            assert {name: field(form, name) for name in sent_ranks} == sent_ranks
    assert work.count(schema.comparisons) == 0


def test_ratings_flags_and_note_are_recorded_with_their_candidate(work: WorkSite) -> None:
    work.add_project(tasks=[compare("zero", "one", "two")], rating_axes=True)
    ann = work.site.person("ann", Role.LABELER)
    form = open_form(ann)
    order = work.lease_of(form).shown_order
    axes = {"accuracy_A": "1", "coverage_A": "2", "coherence_A": "3", "overall_A": "4"}
    rest = {f"{axis}_C": "7" for axis in ("accuracy", "coverage", "coherence", "overall")}

    answer = send(
        ann,
        form,
        {
            "rank_A": "3",
            "rank_B": "2",
            "rank_C": "1",
            **axes,
            **rest,
            "flag_A": ["harmful", "made_up"],
            "flag_B": "cannot_judge",  # so it needs no ratings
            "note": "C asks\nthe question",
        },
    )

    assert answer.status_code == 303, answer.text
    (row,) = work.rows(schema.comparisons)
    assert row.note == "C asks\nthe question"
    assert row.ratings[order[0]] == {
        "accuracy": 1,
        "coverage": 2,
        "coherence": 3,
        "overall": 4,
        "flags": ["harmful", "made_up"],
    }
    assert row.ratings[order[1]] == {"flags": ["cannot_judge"]}
    assert row.ratings[order[2]] == {"accuracy": 7, "coverage": 7, "coherence": 7, "overall": 7}


def test_a_form_that_is_sent_twice_makes_one_record(work: WorkSite) -> None:
    work.add_project(tasks=[compare("good", "bad"), compare("fine", "poor")])
    ann = work.site.person("ann", Role.LABELER)
    form = open_form(ann)

    first = send(ann, form, {"preference": "1", "submitted_ms": "1000"})
    second = send(ann, form, {"preference": "1", "submitted_ms": "2000"})
    other = send(ann, form, {"preference": "9"})
    another_window = send(ann, form, {"preference": "9", "nonce": "another"})

    assert [first.status_code, second.status_code] == [303, 303]
    assert [other.status_code, another_window.status_code] == [409, 409]
    assert "Answered already" in other.text
    assert "Answered already" in another_window.text
    assert f"/work/cats/item/{field(form, 'item')}" in other.text
    assert [row.confidence for row in work.rows(schema.comparisons)] == [9]


def test_two_equal_forms_at_once_make_one_record(work: WorkSite) -> None:
    work.add_project(tasks=[compare("good", "bad")])
    ann = work.site.person("ann", Role.LABELER)
    form = open_form(ann)

    with ThreadPoolExecutor(4) as windows:
        answers = list(windows.map(lambda _: send(ann, form, {"preference": "3"}), range(4)))

    assert [answer.status_code for answer in answers] == [303] * 4
    assert work.count(schema.comparisons) == 1


def test_the_page_shows_letters_and_texts_only(work: WorkSite) -> None:
    work.add_project(
        title="Cats & doors", tasks=[compare('<b>bold</b> & "quoted"', "line one\n\n  line two")]
    )
    ann = work.site.person("ann", Role.LABELER)

    response = ann.get("/work/cats")

    page = HtmlPage(response.text)
    for secret in (SOURCE, BATCH, "kept-secret-id", "ordinary", "policy"):
        assert secret not in response.text
    lease = work.lease_of(find_form(response, "/answer"))
    data = {
        (name, value)
        for _tag, attributes in page.elements
        for name, value in attributes.items()
        if name.startswith("data-") and value
    }
    assert {name for name, _ in data} <= {"data-kind", "data-draft", "data-slot", "data-words"}
    assert {value for name, value in data if name == "data-slot"} == {"A", "B"}
    assert lease.id in response.text  # the one token, which says nothing
    assert "<b>" not in response.text.replace("<b>A</b>", "").replace("<b>B</b>", "").replace("<b></b>", "")
    assert "line one\n\n  line two" in page.text
    assert '<b>bold</b> & "quoted"' in page.text


def test_what_belongs_to_another_labeler_is_like_what_does_not_exist(work: WorkSite) -> None:
    work.add_project(tasks=[compare("good", "bad", overlap_count=2)])
    work.add_project("dogs", tasks=[compare("good", "bad")])
    ann, ben = (work.site.person(name, Role.LABELER) for name in ("ann", "ben"))
    theirs = open_form(ann)
    own = open_form(ben)

    def trials(token: str) -> list[tuple[int, str]]:
        answers = [
            ben.post(
                f"/work/cats/{act}",
                data={**hidden(own), "item": token, "preference": "1", "reason": "broken"},
            )
            for act in ("answer", "draft", "skip", "reading")
        ]
        answers += [
            ben.get(f"/work/cats/item/{token}"),
            ben.get(f"/work/cats/feedback/{token}"),
            ben.get(f"/inbox/{token}"),
            ben.post(f"/inbox/{token}", data={**hidden(own), "text": "hello"}),
            ben.post(f"/work/cats/item/{token}", data={**hidden(own), "preference": "1"}),
        ]
        without_tokens = [re.sub(r'value="[^"]*"', "", answer.text) for answer in answers]
        return [(answer.status_code, text) for answer, text in zip(answers, without_tokens, strict=True)]

    assert {status for status, _ in trials(field(theirs, "item"))} == {404}
    assert trials(field(theirs, "item")) == trials("0" * 32)
    # Nor may an own item be answered as one of another project.
    assert ben.post("/work/dogs/answer", data={**hidden(own), "preference": "1"}).status_code == 404
    assert send(ann, theirs, {"preference": "1"}).status_code == 303
    assert {status for status, _ in trials(field(theirs, "item"))} == {404}
    assert work.count(schema.comparisons) == 1


def test_an_unknown_project_is_not_found(work: WorkSite) -> None:
    ann = work.site.person("ann", Role.LABELER)
    for path in (
        "/work/nothing",
        "/work/nothing/history",
        "/work/nothing/instructions",
        "/work/nothing/result",
    ):
        assert ann.get(path).status_code == 404
    assert ann.submit("/work/nothing/retry").status_code == 404


def test_a_half_finished_answer_is_there_again_on_another_device(work: WorkSite) -> None:
    work.add_project(tasks=[compare("zero", "one", "two")], rating_axes=True)
    ann = work.site.person("ann", Role.LABELER)
    form = open_form(ann)
    entered = {"rank_B": "1", "accuracy_B": "6", "flag_C": "harmful", "note": "half", "active_ms": "1500"}
    draft = f"{form.action.removesuffix('/answer')}/draft"

    kept = ann.post(draft, data={**hidden(form), **entered, "revision": "7"})
    late = ann.post(draft, data={**hidden(form), "note": "older", "revision": "6"})

    assert (kept.json(), late.json()) == ({"kept": True}, {"kept": False})
    again = open_form(work.site.person("ann", Role.LABELER))
    assert field(again, "item") == field(form, "item")
    assert (field(again, "rank_A"), field(again, "rank_B")) == ("", "1")
    assert checked(again, "accuracy_B") == "6"
    assert checked(again, "flag_C") == "harmful"
    assert checked(again, "flag_B") is None
    assert field(again, "note").strip() == "half"
    assert (field(again, "revision"), field(again, "active_ms")) == ("7", "1500")
    # An answer ends it.
    send(ann, form, {"rank_A": "1", "rank_B": "2", "rank_C": "2", **_rated("ABC")})
    assert work.count(schema.comparisons) == 1
    assert work.count(schema.drafts) == 0
    assert ann.post(draft, data={**hidden(form), **entered, "revision": "9"}).status_code == 409


OUT_OF_BOUNDS: list[dict[str, Any]] = [
    {"preference": "0"},
    {"rank_A": "4"},
    {"accuracy_A": "8"},
    {"accuracy_A": "7.5"},
    {"flag_A": "unheard_of"},
    {"flag_A": ["harmful", "harmful"]},
    {"note": "x" * 10_001},
    {"active_ms": "-1"},
    {"active_ms": "86400001"},
    {"shown_ms": "soon"},
    {"submitted_ms": "253402300800000"},
    {"changes": "1000001"},
    {"aids": "crystal_ball"},
    {"device": "toaster"},
    {"page": "x" * 17},
    {"instructions": "-1"},
    {"revision": "x"},
]


def test_fields_out_of_bounds_are_refused(work: WorkSite) -> None:
    work.add_project(tasks=[compare("zero", "one", "two")])
    ann = work.site.person("ann", Role.LABELER)
    form = open_form(ann)
    complete = {"rank_A": "1", "rank_B": "2", "rank_C": "3"}
    for fields in OUT_OF_BOUNDS:
        draft = ann.post("/work/cats/draft", data={**hidden(form), **complete, **fields})
        assert draft.status_code == 400, fields
        if "revision" not in fields:  # an answer has none
            assert send(ann, form, {**complete, **fields}).status_code == 400, fields
    assert work.count(schema.comparisons) == 0
    assert work.count(schema.drafts) == 0


def test_what_the_page_measured_is_recorded_and_may_be_missing(work: WorkSite) -> None:
    work.add_project(
        tasks=[compare("good", "bad"), compare("fine", "poor")], instructions="Read.", reading_aids=True
    )
    ann = work.site.person("ann", Role.LABELER)
    find = find_form(ann.get("/work/cats/instructions"), "/instructions")
    send(ann, find)
    form = open_form(ann)
    measured = {
        "shown_ms": "1700000000000",
        "first_ms": "1700000001500",
        "submitted_ms": "1700000004000",
        "active_ms": "3500",
        "changes": "3",
        "aids": "look_up,word_differences",
        "device": "phone",
    }
    send(ann, form, {**measured, "preference": "1"})
    send(ann, open_form(ann), {"preference": "1"})

    with_script, without = work.rows(schema.comparisons)
    assert with_script.telemetry == {
        "shown_us": 1_700_000_000_000_000,
        "first_action_us": 1_700_000_001_500_000,
        "submit_us": 1_700_000_004_000_000,
        "active_us": 3_500_000,
        "change_count": 3,
        "aids": ["word_differences", "look_up"],
        "device_class": "phone",
        "page_version": field(form, "page"),
        "instructions_version": 1,
    }
    assert with_script.answer_duration_us == 4_000_000
    assert without.answer_duration_us is None
    assert without.telemetry["active_us"] is None
    assert without.telemetry["instructions_version"] == 1
    assert re.fullmatch(r"[0-9a-f]{12}", without.telemetry["page_version"])


def test_skipping_needs_a_reason_and_gives_the_item_to_others(work: WorkSite) -> None:
    work.add_project(tasks=[compare("good", "bad")])
    ann, ben = (work.site.person(name, Role.LABELER) for name in ("ann", "ben"))
    form = find_form(ann.get("/work/cats"), "/skip")

    for fields in ({}, {"reason": "other"}, {"reason": "unheard_of"}, {"reason_words": "because"}):
        refused = send(ann, form, fields)
        assert refused.status_code == 400
        assert 'id="reason-error"' in refused.text
    assert work.count(schema.skips) == 0

    first = send(ann, form, {"reason": "other", "reason_words": "I wrote it"})
    second = send(ann, form, {"reason": "other", "reason_words": "I wrote it"})
    assert (first.status_code, second.status_code) == (303, 303)
    assert [row.reason for row in work.rows(schema.skips)] == ["Something else: I wrote it"]
    assert "Nothing left" in ann.get("/work/cats").text
    assert field(open_form(ben), "item") != field(form, "item")


def test_an_answer_after_the_lease_ran_out_counts_while_nobody_else_has_the_item(work: WorkSite) -> None:
    work.add_project(tasks=[compare("good", "bad")])
    ann = work.site.person("ann", Role.LABELER)
    form = open_form(ann)
    work.expire(form)

    assert send(ann, form, {"preference": "1"}).status_code == 303
    assert work.count(schema.comparisons) == 1


def test_an_answer_to_an_item_that_somebody_else_has_got_loses_no_text(work: WorkSite) -> None:
    work.add_project(tasks=[compare("good", "bad")])
    ann = work.site.person("ann", Role.LABELER)
    form = open_form(ann)
    work.expire(form)
    work.store.lease_tasks(LeaseOrder(labeler_id="ben", batch="", max_tasks=1, duration_us=60_000_000))

    late = send(ann, form, {"preference": "8", "note": "my <careful> words"})

    assert late.status_code == 409
    assert "somebody else" in late.text
    assert "B much better" in late.text
    assert "my &lt;careful&gt; words" in late.text
    assert 'href="/work/cats"' in late.text
    assert work.count(schema.comparisons) == 0
    skip = ann.post("/work/cats/skip", data={**hidden(form), "reason": "broken"})
    assert (skip.status_code, work.count(schema.skips)) == (303, 0)  # it is not theirs any more


def test_the_first_step_of_a_naive_reading_comes_without_the_document(work: WorkSite) -> None:
    work.add_project(tasks=[compare("zero", "one")], naive_reading=True)
    ann = work.site.person("ann", Role.LABELER)
    form = open_form(ann, action_end="/reading")
    order = work.lease_of(form).shown_order
    token = field(form, "item")

    assert ann.get(f"/inbox/{token}").status_code == 404
    early = ann.post("/work/cats/answer", data={**hidden(form), "preference": "1"})
    half = send(ann, form, {"reading_A": "about cats"})
    assert (early.status_code, half.status_code) == (400, 400)
    assert 'id="reading_B-error"' in half.text
    assert "about cats" in half.text
    for page in (
        ann.get("/work/cats"),
        early,
        half,
        ann.get(f"/work/cats/item/{token}", follow_redirects=True),
    ):
        assert DOCUMENT not in page.text

    assert send(ann, form, {"reading_A": "about cats", "reading_B": "about doors"}).status_code == 303
    second = ann.get("/work/cats")
    assert DOCUMENT in second.text
    assert "about doors" in second.text
    answer_form = find_form(second, "/answer")
    # What was read stands, whatever later drafts and forms say.
    ann.post("/work/cats/draft", data={**hidden(answer_form), "reading_A": "changed", "revision": "99"})
    send(ann, answer_form, {"preference": "1", "reading_A": "changed"})
    (row,) = work.rows(schema.comparisons)
    assert row.ratings[order[0]] == {"naive_reading": "about cats"}
    assert row.ratings[order[1]] == {"naive_reading": "about doors"}


def test_progress_end_and_projects_are_told(work: WorkSite) -> None:
    work.add_project(tasks=[compare("good", "bad"), compare("fine", "poor")], title="Cats and doors")
    work.add_project("empty")
    ann = work.site.person("ann", Role.LABELER)

    assert ann.get("/").headers["location"] == "/work"
    home = ann.get("/work").text
    assert "Cats and doors" in home
    assert "Items are waiting" in home
    assert "empty" not in home
    assert "0 answered by you · 0 of 2 in this batch" in ann.get("/work/cats").text
    send(ann, open_form(ann), {"preference": "1"})
    assert "1 answered by you · 1 of 2 in this batch" in ann.get("/work/cats").text
    send(ann, open_form(ann), {"preference": "1"})
    assert "Nothing left for now" in ann.get("/work/cats").text
    assert "Nothing left for you right now · 2 answered by you" in ann.get("/work").text


def test_a_script_gets_the_next_page_as_the_answer_to_its_form(work: WorkSite) -> None:
    work.add_project(tasks=[compare("good", "bad"), compare("fine", "poor")])
    ann = work.site.person("ann", Role.LABELER)
    form = open_form(ann)
    script = {"X-Andon-Swap": "1", "Accept": "text/html"}

    answer = send(ann, form, {"preference": "1"}, headers=script)

    assert (answer.status_code, answer.headers["x-andon-path"]) == (200, "/work/cats")
    assert field(find_form(answer, "/answer"), "item") != field(form, "item")


def test_the_cold_page_of_an_item_is_light(work: WorkSite) -> None:
    long_post = " ".join(f"word{number}" for number in range(500))
    work.add_project(tasks=[compare("good", "bad", document=long_post)], rating_axes=True, reading_aids=True)
    ann = work.site.person("ann", Role.LABELER)

    page = ann.get("/work/cats")
    assets = re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text)

    assert sorted(asset.rpartition(".")[2] for asset in assets) == ["css", "js"]  # nothing else is fetched
    parts = [page.content, *(ann.get(asset).content for asset in assets)]
    assert sum(len(gzip.compress(part, 6)) for part in parts) < 60_000


def test_researchers_label_too(work: WorkSite) -> None:
    work.add_project(tasks=[compare("good", "bad")])
    rita = work.site.person("rita", Role.RESEARCHER)

    page = rita.get("/work/cats")
    assert "/inbox/" not in page.text  # that page is for labelers
    assert send(rita, find_form(page, "/answer"), {"preference": "4"}).status_code == 303
    (row,) = work.rows(schema.comparisons)
    assert row.labeler_id == "rita"


def _rated(letters: str) -> dict[str, str]:
    axes = ("accuracy", "coverage", "coherence", "overall")
    return {f"{axis}_{letter}": "4" for axis in axes for letter in letters}
