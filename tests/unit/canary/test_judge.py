"""What the judge can be told, whom it finds by name, and that it decides as told without any server."""

import socket
from pathlib import Path
from typing import Any

import pytest

from andon.errors import UnavailableError
from andon.rpc.config import load_config
from services.canary.gates import standard
from services.canary.judge import main
from services.canary.judge_config import JudgeConfig
from services.canary.platform import Track
from services.canary.sides import Address, NamedSides

NEEDED = {"ANDON_JUDGE_PROMPTS": "prompts.jsonl"}


def config(**variables: str) -> JudgeConfig:
    named = {f"ANDON_JUDGE_{name.upper()}": value for name, value in variables.items()}
    return load_config(JudgeConfig, service="judge", argv=[], environment={**NEEDED, **named})


def test_rates_are_those_of_the_whole_rollout() -> None:
    told = config(steps="5,25,50", step="2", promotion_error_rate="0.04", rollback_error_rate="0.06")
    rates = told.spec("policy/12").rates
    assert rates.promotion == pytest.approx(0.04)
    assert rates.rollback == pytest.approx(0.02)
    assert told.spec("policy/12").steps == (5, 25, 50)


def test_one_step_is_a_rollout_too() -> None:
    assert config(steps="50", step="1").steps == [50]


def test_gates_can_be_moved_and_left_out() -> None:
    told = config(boundaries='{"score": -0.1}', left_out_gates="latency,calls", ask_people="true")
    gates = {rule.name: rule for rule in told.spec("policy/12").gates}
    assert gates[standard.SCORE].boundary == -0.1
    assert set(gates) == {"score", "kl", "longer", "shorter", "repetition", "people"}


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "there is no folder /nowhere/store"),
        ({"step": "0"}, "step: Input should be greater than or equal to 1"),
        ({"step": "4", "steps": "5,25,50"}, "step 4 of 3 steps"),
        ({"steps": "50,25"}, "steps must rise"),
        ({"steps": "0,50"}, "steps must rise"),
        ({"steps": "half"}, "steps.0"),
        ({"steps": "[]"}, "step 1 of 0 steps"),
        ({"promotion_error_rate": "0"}, "promotion_error_rate"),
        ({"rollback_error_rate": "1"}, "rollback_error_rate"),
        ({"rollback_error_rate": "nan"}, "rollback_error_rate"),
        ({"boundaries": '{"beauty": 0}'}, "no gate 'beauty'; there are score"),
        ({"boundaries": '{"people": 0.5}'}, "no gate 'people'"),
        ({"boundaries": '{"score": -5}'}, "gate score"),
        ({"boundaries": '{"score": "NaN"}'}, "a boundary must be a finite number"),
        ({"left_out_gates": "beauty"}, "no gate 'beauty'"),
        ({"left_out_gates": "score,score"}, "no gate 'score'"),
        ({"left_out_gates": "score,kl,longer,shorter,repetition,latency,calls"}, "needs gates"),
        ({"least_s": "100", "longest_s": "100"}, "least_s must be below longest_s"),
        ({"ready_s": "0"}, "ready_s"),
        ({"stable_targets": "andon-policy"}, "'andon-policy' is not host:port"),
        ({"canary_targets": "andon-policy:0"}, "is not host:port"),
        ({"canary_targets": "a:1,b:99999"}, "'b:99999' is not host:port"),
        ({"stable_targets": "a:1", "canary_targets": "b:1,dns:///a:1"}, "must not share an address"),
        ({"canary_metrics_port": "70000"}, "canary_metrics_port"),
        ({"port": "50056"}, "unknown variable ANDON_JUDGE_PORT"),
        ({"setps": "50"}, "did you mean steps?"),
    ],
)
def test_what_makes_no_sense_ends_with_2(
    variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANDON_JUDGE_STORE", "/nowhere/store")
    for name, value in {"prompts": "prompts.jsonl", **variables}.items():
        monkeypatch.setenv(f"ANDON_JUDGE_{name.upper()}", value)
    assert exit_code() == 2
    out, told = capfd.readouterr()
    assert says in told
    assert out == ""


def test_the_cord_and_people_need_the_labeling_service() -> None:
    with pytest.raises(ValueError, match="watch_cord needs labeling_target"):
        JudgeConfig(prompts="p", labeling_target=None)
    with pytest.raises(ValueError, match="ask_people needs labeling_target"):
        JudgeConfig(prompts="p", labeling_target=None, watch_cord=False, ask_people=True)
    assert JudgeConfig(prompts="p", labeling_target=None, watch_cord=False).step == 1


def exit_code() -> Any:
    try:
        return main([])
    except SystemExit as ended:
        return ended.code


def test_without_prompts_it_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANDON_JUDGE_STORE", str(tmp_path))
    assert exit_code() == 2
    assert "without documents to probe both sides with nothing can be shown" in capfd.readouterr().err
    monkeypatch.setenv("ANDON_JUDGE_PROMPTS", str(tmp_path / "prompts.jsonl"))
    assert exit_code() == 2
    assert "prompts.jsonl" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [
        ("andon-policy:50051", "andon-policy", 50051),
        ("dns:///andon-policy:50051", "andon-policy", 50051),
        ("10.0.0.7:1", "10.0.0.7", 1),
        ("[fd00::7]:50051", "fd00::7", 50051),
    ],
)
def test_addresses(target: str, host: str, port: int) -> None:
    assert Address.parse(target) == Address(host=host, port=port)


def answer(*numbers: str) -> list[Any]:
    return [
        (socket.AF_INET6 if ":" in number else socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, 50051))
        for number in numbers
    ]


def test_every_address_of_a_name_is_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "stable": answer("10.0.0.2", "10.0.0.1", "10.0.0.2"),
        "canary": answer("fd00::7", "10.0.0.7"),  # one pod, with an address of each family
    }
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, _port, **_: names[host])
    sides = NamedSides(
        stable=[Address(host="stable", port=50051)],
        canary=[Address(host="canary", port=50051)],
        canary_metrics_port=9101,
    )
    stable, canary = sides.replicas(Track.STABLE), sides.replicas(Track.CANARY)
    assert [replica.target for replica in stable] == ["10.0.0.1:50051", "10.0.0.2:50051"]
    assert [replica.metrics_url for replica in stable] == ["", ""]
    (replica,) = canary
    assert replica.target == "[fd00::7]:50051"
    assert replica.metrics_url == "http://[fd00::7]:9101/metrics"
    names["canary"] = answer("10.0.0.8")  # another pod
    assert [replica.target for replica in sides.replicas(Track.CANARY)] == ["10.0.0.8:50051"]


@pytest.mark.parametrize(("number", "is_empty"), [(socket.EAI_NONAME, True), (socket.EAI_AGAIN, False)])
def test_no_address_is_no_replica_and_no_answer_is_an_error(
    monkeypatch: pytest.MonkeyPatch, number: int, is_empty: bool
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(number, "said the resolver")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    sides = NamedSides(
        stable=[Address(host="a", port=1)], canary=[Address(host="b", port=1)], canary_metrics_port=None
    )
    if is_empty:
        assert sides.replicas(Track.CANARY) == []
    else:
        with pytest.raises(UnavailableError, match="b cannot be looked up: said the resolver"):
            sides.replicas(Track.CANARY)
