"""An answer that leaves the service comes back as the same record, by file and by message."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from andon.api.common.v1 import model_pb2
from andon.api.labeling.v1 import labeling_service_pb2 as pb
from andon.cli.output import plain
from andon.client.labeling_messages import comparison_from_proto
from andon.corpus.export_format import comparison_from_row, row_from_comparison
from andon.corpus.formats import comparison_reader
from andon.corpus.records import (
    FLAGS,
    PURPOSES,
    CandidateRecord,
    ComparisonRecord,
    RatingRecord,
    TelemetryRecord,
)
from andon.rpc.convert import datetime_to_timestamp, seconds_to_duration

texts = st.text(max_size=30)  # no surrogates: hypothesis leaves them out of text() unless asked
words = st.text(max_size=8)
axes = st.none() | st.integers(1, 7)
spans = st.none() | st.floats(0, 1e6)
moments = st.none() | st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1), timezones=st.just(UTC)).map(
    lambda moment: moment.isoformat().replace("+00:00", "Z")
)
ratings = st.builds(
    RatingRecord,
    accuracy=axes,
    coverage=axes,
    coherence=axes,
    overall=axes,
    flags=st.lists(st.sampled_from(FLAGS), unique=True).map(tuple),
    naive_reading=texts,
)
telemetry = st.builds(
    TelemetryRecord,
    shown_time=moments,
    first_action_time=moments,
    submit_time=moments,
    active_s=spans,
    change_count=st.integers(0, 1000),
    aids=st.lists(words).map(tuple),
    device_class=words,
    page_version=words,
    instructions_version=st.integers(0, 1000),
)
candidates = st.builds(
    CandidateRecord, text=texts, source=words, policy_version=st.none() | st.just("policy/3")
)


@st.composite
def comparisons(draw: st.DrawFn) -> ComparisonRecord:
    """Any record that the service can hold."""
    count = draw(st.integers(1, 9))
    order = draw(st.permutations(range(count)))
    cuts = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    tiers: list[tuple[int, ...]] = []
    for index, starts_a_tier in zip(order, cuts, strict=True):
        if starts_a_tier or not tiers:
            tiers.append((index,))
        else:
            tiers[-1] = (*tiers[-1], index)
    preference: int | None = None
    if count == 2:
        side = range(5, 6) if len(tiers) == 1 else range(1, 5) if tiers[0] == (0,) else range(6, 10)
        preference = draw(st.none() | st.sampled_from(side))
    return ComparisonRecord(
        document_id=draw(texts),
        document=draw(texts),
        candidates=tuple(draw(st.lists(candidates, min_size=count, max_size=count))),
        tiers=tuple(tiers),
        only_best_known=draw(st.booleans()),
        labeler_id=draw(words),
        confidence=draw(st.none() | st.integers(1, 9)),
        comparison_id=draw(words),
        batch=draw(words),
        verdict=draw(st.none() | st.booleans()) if count == 1 else None,
        preference=preference,
        ratings=tuple(draw(st.just([]) | st.lists(ratings, min_size=count, max_size=count))),
        note=draw(texts),
        shown_order=tuple(draw(st.just([]) | st.permutations(range(count)))),
        lease_time=draw(moments),
        answer_time=draw(moments),
        duration_s=draw(spans),
        project=draw(words),
        purpose=draw(st.sampled_from(PURPOSES)),
        round=draw(st.integers(0, 9)),
        supersedes_comparison_id=draw(st.none() | st.integers(1).map(str)),
        is_superseded=draw(st.booleans()),
        origin=draw(words),
        task_id=draw(words),
        telemetry=draw(st.none() | telemetry),
    )


@given(comparisons())
@settings(max_examples=150)
def test_a_record_survives_its_line_of_json(record: ComparisonRecord) -> None:
    line = json.dumps(row_from_comparison(record), ensure_ascii=False)
    row = json.loads(line.encode())
    assert comparison_from_row(row, "elsewhere-1") == record
    # What `andon label export` prints is the same row.
    assert json.loads(json.dumps(plain(record))) == row
    reader = comparison_reader(row)
    assert reader is not None
    assert reader(row, "elsewhere-1") == [record]


def full_message(**decision: Any) -> pb.Comparison:
    moment = datetime(2026, 3, 1, 12, 0, 0, 250000, tzinfo=UTC)
    return pb.Comparison(
        comparison_id=17,
        task_id="task-1",
        batch="b",
        document_id="d-1",
        document="D",
        candidates=[
            pb.Candidate(
                text=" a ", source="policy", policy_version=model_pb2.ModelVersion(name="sft", version=2)
            ),
            pb.Candidate(text="b", source="reference"),
        ],
        confidence=7,
        note="because",
        labeler_id="ann",
        shown_order=[1, 0],
        lease_time=datetime_to_timestamp(moment),
        answer_time=datetime_to_timestamp(moment + timedelta(seconds=90)),
        answer_duration=seconds_to_duration(12.5),
        project="p",
        purpose=pb.TASK_PURPOSE_CALIBRATION,
        preference=8,
        ratings=[
            pb.Rating(
                accuracy=1, coverage=2, coherence=3, overall=4, flags=[pb.FLAG_MADE_UP], naive_reading="n"
            ),
            pb.Rating(),
        ],
        round=1,
        supersedes_comparison_id=9,
        is_superseded=True,
        origin="site",
        telemetry=pb.Telemetry(
            shown_time=datetime_to_timestamp(moment),
            active_duration=seconds_to_duration(3.25),
            change_count=2,
            aids=["differences"],
            device_class="phone",
            page_version="3",
            instructions_version=4,
        ),
        **decision,
    )


def test_every_field_of_a_message_reaches_the_record_and_its_line() -> None:
    ranking = pb.Ranking(tiers=[pb.Tier(candidate_indices=[1]), pb.Tier(candidate_indices=[0])])
    record = comparison_from_proto(full_message(ranking=ranking))
    assert record == ComparisonRecord(
        document_id="d-1",
        document="D",
        candidates=(
            CandidateRecord(text=" a ", source="policy", policy_version="sft/2"),
            CandidateRecord(text="b", source="reference"),
        ),
        tiers=((1,), (0,)),
        labeler_id="ann",
        confidence=7,
        comparison_id="17",
        batch="b",
        preference=8,
        ratings=(
            RatingRecord(
                accuracy=1, coverage=2, coherence=3, overall=4, flags=("made_up",), naive_reading="n"
            ),
            RatingRecord(),
        ),
        note="because",
        shown_order=(1, 0),
        lease_time="2026-03-01T12:00:00.250Z",
        answer_time="2026-03-01T12:01:30.250Z",
        duration_s=12.5,
        project="p",
        purpose="calibration",
        round=1,
        supersedes_comparison_id="9",
        is_superseded=True,
        origin="site",
        task_id="task-1",
        telemetry=TelemetryRecord(
            shown_time="2026-03-01T12:00:00.250Z",
            active_s=3.25,
            change_count=2,
            aids=("differences",),
            device_class="phone",
            page_version="3",
            instructions_version=4,
        ),
    )
    assert comparison_from_row(json.loads(json.dumps(plain(record))), "x") == record
    # A field added to the contract has to be added to this test and to the record.
    covered = {field.name for field, _ in full_message(ranking=ranking).ListFields()}
    assert covered | {"choice", "verdict"} == {field.name for field in pb.Comparison.DESCRIPTOR.fields}


def test_an_empty_message_has_nothing_but_defaults() -> None:
    record = comparison_from_proto(
        pb.Comparison(
            comparison_id=1, candidates=[pb.Candidate(text="x")], verdict=pb.Verdict(affirmed=False)
        )
    )
    assert record == ComparisonRecord(
        document_id="",
        document="",
        candidates=(CandidateRecord(text="x"),),
        tiers=((0,),),
        comparison_id="1",
        verdict=False,
    )


def test_a_time_to_the_nanosecond_keeps_its_digits() -> None:
    row = {"document": "D", "candidates": [{"text": "a"}], "tiers": [[0]]}
    moment = "2026-01-01T00:00:00.123456789Z"
    assert comparison_from_row({**row, "answer_time": moment}, "x").answer_time == moment
