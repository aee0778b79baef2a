"""Commands as programs call them: exit codes, pure JSON on stdout, one line for an error."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_status import rpc_status
from typer.testing import CliRunner

from andon.api.common.v1 import model_pb2
from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import cord_service_pb2_grpc as cord_grpc
from andon.api.reward.v1 import reward_service_pb2 as reward_pb2
from andon.api.reward.v1 import reward_service_pb2_grpc as reward_grpc
from andon.api.trainer.v1 import trainer_service_pb2 as trainer_pb2
from andon.api.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from andon.cli.endpoints import SERVICES, write_endpoints
from andon.cli.main import app
from andon.errors import FailedPreconditionError
from andon.modeling.manifest import DataUse, ManifestDraft
from andon.modeling.store import WEIGHTS_NAME, ModelStore
from andon.rpc.errors import error_to_status
from tests.loaded_modules import FOR_SERVERS, HEAVY, modules_of_command

runner = CliRunner()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, where nothing runs: every service's address is a closed port."""
    for name in list(os.environ):
        if name.startswith("ANDON_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    write_endpoints(folder, dict.fromkeys(SERVICES, "127.0.0.1:1"))
    monkeypatch.setenv("ANDON_HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return folder


class Services(
    reward_grpc.RewardServiceServicer, cord_grpc.CordServiceServicer, trainer_grpc.TrainerServiceServicer
):
    """As much of three services as these tests need."""

    def __init__(self) -> None:
        self.cord = cord_pb2.Cord(state=cord_pb2.CORD_STATE_RELEASED)
        self.has_model = True
        self.final_state = trainer_pb2.RUN_STATE_SUCCEEDED

    def Score(
        self, request: reward_pb2.ScoreRequest, context: grpc.ServicerContext
    ) -> reward_pb2.ScoreResponse:
        if not self.has_model:
            error = FailedPreconditionError("no reward model is loaded", reason="MODEL_NOT_LOADED")
            context.abort_with_status(rpc_status.to_status(error_to_status(error)))
        return reward_pb2.ScoreResponse(
            items=[
                reward_pb2.ItemScores(
                    summaries=[reward_pb2.SummaryScore(score=0.5, token_count=3) for _ in item.summaries]
                )
                for item in request.items
            ],
            model=model_pb2.ModelVersion(name="reward", version=2),
            normalization=reward_pb2.Normalization(gain=1),
        )

    def PullCord(
        self, request: cord_pb2.PullCordRequest, context: grpc.ServicerContext
    ) -> cord_pb2.PullCordResponse:
        self.cord = cord_pb2.Cord(
            state=cord_pb2.CORD_STATE_PULLED, event_number=1, actor=request.actor, reason=request.reason
        )
        self.cord.event_time.GetCurrentTime()
        return cord_pb2.PullCordResponse(cord=self.cord)

    def GetCord(
        self, request: cord_pb2.GetCordRequest, context: grpc.ServicerContext
    ) -> cord_pb2.GetCordResponse:
        return cord_pb2.GetCordResponse(cord=self.cord)

    def StartRun(
        self, request: trainer_pb2.StartRunRequest, context: grpc.ServicerContext
    ) -> trainer_pb2.StartRunResponse:
        self.started = request
        return trainer_pb2.StartRunResponse(run=trainer_pb2.Run(run_id="run-1", stage=request.stage))

    def GetRun(
        self, request: trainer_pb2.GetRunRequest, context: grpc.ServicerContext
    ) -> trainer_pb2.GetRunResponse:
        run = trainer_pb2.Run(run_id="run-1", stage=self.started.stage, state=self.final_state)
        return trainer_pb2.GetRunResponse(run=run)

    def WatchRun(
        self, request: trainer_pb2.WatchRunRequest, context: grpc.ServicerContext
    ) -> Iterator[trainer_pb2.WatchRunResponse]:
        progress = trainer_pb2.RunEvent(sequence=1)
        progress.progress.step = 1
        progress.progress.metrics["loss"] = 2.5
        yield trainer_pb2.WatchRunResponse(event=progress)
        ended = trainer_pb2.RunEvent(sequence=2)
        ended.state_changed.state = self.final_state
        yield trainer_pb2.WatchRunResponse(event=ended)


@contextmanager
def running(home: Path, services: Services) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(4))
    reward_grpc.add_RewardServiceServicer_to_server(services, server)
    cord_grpc.add_CordServiceServicer_to_server(services, server)
    trainer_grpc.add_TrainerServiceServicer_to_server(services, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    write_endpoints(home, dict.fromkeys(("reward", "labeling", "trainer"), f"127.0.0.1:{port}"))
    try:
        yield
    finally:
        server.stop(grace=None).wait()


def test_scores_as_json(home: Path) -> None:
    with running(home, Services()):
        result = runner.invoke(app, ["score", "a document", "one", "two", "--json"])
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["model"] == "reward/2"
    assert [summary["score"] for summary in answer["results"][0]["summaries"]] == [0.5, 0.5]


def test_a_table_for_people_keeps_what_looks_like_markup(home: Path) -> None:
    with running(home, Services()):
        result = runner.invoke(app, ["score", "a document", "a [bold] summary"])
    assert result.exit_code == 0
    assert "a [bold] summary" in result.stdout


def test_a_service_that_is_not_there_is_3() -> None:
    result = runner.invoke(app, ["score", "a document", "one", "--json"])
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "error UNAVAILABLE: RewardService at 127.0.0.1:1 cannot be reached" in result.stderr
    assert "andon up" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_refusal_is_1_with_its_reason_and_a_hint(home: Path) -> None:
    services = Services()
    services.has_model = False
    with running(home, services):
        result = runner.invoke(app, ["score", "a document", "one"])
    assert result.exit_code == 1
    assert "error MODEL_NOT_LOADED: no reward model is loaded" in result.stderr
    assert "andon models load" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["score"],
        ["score", "a document"],
        ["score", "a document", "one", "--data", "x.jsonl"],
        ["score", "--data", "missing.jsonl"],
        ["sample", "a document", "--temperature", "-1"],
        ["sample", "a document", "--no-such-flag"],
        ["train", "sft", "--set", "nonsense"],
        ["train", "sft", "--config", "missing.yaml"],
        ["train", "nothing"],
        ["label", "submit", "--batch", "b"],
        ["models", "load", "trainer", "sft/1"],
        ["models", "show", "sft/0"],
        ["evaluate", "--data", "missing.jsonl"],
        ["demo", "--recipe", "missing.yaml"],
        ["demo", "--beta", "-1"],
        ["up", "--config", "missing.yaml"],
        ["nothing"],
    ],
)
def test_wrong_input_is_2_and_never_a_traceback(arguments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code in (1, 2) if "missing.jsonl" in arguments else result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.strip()


def test_the_cord_goes_through(home: Path) -> None:
    with running(home, Services()):
        pulled = runner.invoke(app, ["cord", "pull", "it turned rude", "--actor", "ada", "--json"])
        status = runner.invoke(app, ["cord", "status"])
    assert json.loads(pulled.stdout)["pulled"] is True
    assert "pulled by ada" in status.stdout
    assert "it turned rude" in status.stdout


def test_a_run_is_watched_to_its_end(home: Path, tmp_path: Path) -> None:
    services = Services()
    (tmp_path / "c.yaml").write_text("steps: 3\nlearning_rate: 0.1\n")
    (tmp_path / "d.jsonl").write_text("{}\n")
    command = ["train", "sft", "--config", "c.yaml", "--data", "d.jsonl", "--set", "steps=5", "--json"]
    with running(home, services):
        result = runner.invoke(app, command)
    assert result.exit_code == 0, result.stderr
    config = dict(services.started.config)
    assert (config["steps"], config["learning_rate"]) == (5, 0.1)
    assert config["data"] == str(tmp_path / "d.jsonl")  # the trainer works in another folder
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["kind"] for line in lines] == ["Progress", "StateChanged", "Run"]
    assert lines[0]["event"]["metrics"] == {"loss": 2.5}
    assert lines[2]["run"]["state"] == "succeeded"


def test_a_run_that_fails_fails_the_command(home: Path) -> None:
    services = Services()
    services.final_state = trainer_pb2.RUN_STATE_FAILED
    with running(home, services):
        assert runner.invoke(app, ["train", "ppo"]).exit_code == 1


def test_status_says_what_is_missing(home: Path) -> None:
    result = runner.invoke(app, ["status", "--json"])
    assert result.exit_code == 3
    answer = json.loads(result.stdout)
    assert {entry["health"] for entry in answer["services"]} == {"unreachable"}
    assert [entry["service"] for entry in answer["services"]] == list(SERVICES)


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / WEIGHTS_NAME).write_text(json.dumps({"weights_sha256": "0" * 64}))


def test_models_are_listed_shown_named_and_verified(home: Path) -> None:
    store = ModelStore(home / "store")
    stored = store.publish(
        "sft",
        write_model,
        manifest=ManifestDraft(
            kind="causal_lm", data=(DataUse(kind="documents", uri="file.jsonl", count=3),), run_id="run-1"
        ),
    )
    listed = runner.invoke(app, ["models", "list", "--json"])
    assert [entry["model"] for entry in json.loads(listed.stdout)] == ["sft/1"]
    assert json.loads(listed.stdout)[0]["aliases"] == ["sft@latest"]
    assert runner.invoke(app, ["models", "alias", "sft@good", "sft/1"]).exit_code == 0
    assert json.loads(runner.invoke(app, ["models", "show", "sft@good", "--json"]).stdout)["model"] == "sft/1"
    assert "file.jsonl" in runner.invoke(app, ["models", "lineage", "sft/1"]).stdout
    assert runner.invoke(app, ["models", "verify"]).exit_code == 0
    (stored.path / "config.json").write_text('{"changed": 1}')
    damaged = runner.invoke(app, ["models", "verify"])
    assert damaged.exit_code == 1
    assert "MODEL_DAMAGED" in damaged.stderr
    missing = runner.invoke(app, ["models", "show", "sft/9"])
    assert missing.exit_code == 1
    assert "MODEL_NOT_FOUND" in missing.stderr


def test_models_in_a_bucket(home: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"s3://{s3_bucket}/models"
    ModelStore(place).publish("sft", write_model, manifest=ManifestDraft(kind="causal_lm"))
    assert runner.invoke(app, ["models", "list", "--json"]).stdout == "[]\n"  # the home's own
    monkeypatch.setenv("ANDON_STORE", place)
    (listed,) = json.loads(runner.invoke(app, ["models", "list", "--json"]).stdout)
    assert (listed["model"], listed["location"]) == ("sft/1", f"{place}/sft/000001")
    assert runner.invoke(app, ["models", "alias", "sft@good", "sft/1"]).exit_code == 0
    assert str(ModelStore(place).resolve("sft@good").version) == "sft/1"
    assert runner.invoke(app, ["models", "verify"]).exit_code == 0
    elsewhere = runner.invoke(app, ["models", "list", "--store", "s3://there-is-no-such-bucket/models"])
    assert elsewhere.exit_code == 1
    assert "STORE_BUCKET_MISSING" in elsewhere.stderr


def test_a_demo_of_running_services_takes_no_store(tmp_path: Path) -> None:
    result = runner.invoke(app, ["demo", "--running", "--store", "s3://models", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "STORE_OF_RUNNING_SERVICES" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "a document", "one"],
        ["score", "a document", "one", "--json"],
        ["cord", "status"],
        ["cord", "pull", "it turned rude"],
        ["train", "sft"],
        ["models", "list"],
    ],
    ids=" ".join,
)
def test_a_call_to_a_service_waits_for_no_heavy_library(home: Path, arguments: list[str]) -> None:
    with running(home, Services()):
        modules = modules_of_command(*arguments)
    assert not modules & (HEAVY | FOR_SERVERS)


@pytest.mark.parametrize("arguments", [["sample", "a document"], ["status"]], ids=" ".join)
def test_nor_does_a_call_to_a_service_that_is_not_there(arguments: list[str]) -> None:
    modules = modules_of_command(*arguments, exit_code=3)
    assert "grpc" in modules
    assert not modules & (HEAVY | FOR_SERVERS)
