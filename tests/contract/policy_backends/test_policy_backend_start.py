"""The policy service before inference servers: whose model it is, getting ready, and the token."""

from pathlib import Path

import grpc
import pytest

from andon.api.common.v1 import model_pb2
from andon.errors import AndonError
from andon.modeling.store import ModelStore
from tests.inference_servers import Answer, FakeTgi, Received
from tests.policy_stand import refused, replace_answers, tokens_of

# --- which model ---


@pytest.mark.parametrize("model_id", ["policy/1", "/data/store/policy/000001", "policy/000001"])
def test_a_stored_version_is_known_by_its_name(start, fake, store: ModelStore, model_id: str) -> None:
    model = start(fake("tgi", model_id=model_id)).info().info.model
    stored = store.resolve("policy/1").version
    assert (model.name, model.version, model.weights_sha256) == ("policy", 1, stored.weights_sha256)


def test_vllm_tells_the_folder_as_root(start, fake) -> None:
    server = fake("openai", model_id="summarizer", root="/data/store/policy/000001")
    stand = start(server)
    stand.sample([5])
    assert stand.info().info.model.version == 1
    assert {request.body["model"] for request in server.sent("/v1/completions")} == {"summarizer"}


def test_a_public_model_carries_the_servers_revision(start, fake, store: ModelStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.symlink_to(store.resolve("policy/1").path)
    (copied := tmp_path / "copied").mkdir()
    for path in outside.iterdir():
        if path.name != "manifest.json":
            (copied / path.name).write_bytes(path.read_bytes())
    stand = start(fake("tgi", model_id=str(copied), model_sha="abc123"), backend_model=str(copied))
    model = stand.info().info.model
    assert (model.name, model.version, model.weights_sha256) == (f"{copied}@abc123", 0, "")
    stand.sample([5], required_model=model)


@pytest.mark.parametrize("model_id", ["policy/2", "/data/policy/000002", "org/other", "1", "policy@stable"])
def test_a_server_of_another_model_is_refused_at_the_start(start, fake, backend: str, model_id: str) -> None:
    with pytest.raises(AndonError) as caught:
        start(fake(backend, model_id=model_id))
    assert caught.value.reason == "BACKEND_SERVES_OTHER_MODEL"


def test_another_version_than_required(start, fake, backend: str) -> None:
    stand = start(fake(backend))
    required = model_pb2.ModelVersion(name="policy", version=2)
    assert refused(lambda: stand.sample([5], required_model=required))[1].reason == "MODEL_VERSION_MISMATCH"


def test_a_server_restarted_with_another_model_is_noticed(start, fake, backend: str) -> None:
    server = fake(backend)
    stand = start(server)
    stand.sample([5])
    if isinstance(server, FakeTgi):
        server.info["model_id"] = "/models/policy/000002"
    else:
        server.models[0]["root"] = "/models/policy/000002"
        server.models[0]["id"] = "policy/000002"
    code, info, _ = refused(lambda: stand.sample([5]))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    # A server of OpenAI's protocol is asked by name, and does not know the old one any more.
    assert info.reason == ("BACKEND_SERVES_OTHER_MODEL" if backend == "tgi" else "BACKEND_REFUSED")


# --- at the start ---


def test_a_server_that_still_loads_is_waited_for(start, fake, backend: str) -> None:
    server = fake(backend)
    left = [2]

    def not_ready(request: Received, answer: Answer) -> Answer:
        left[0] -= 1
        return Answer(status=503, headers={"retry-after": "0.05"}) if left[0] >= 0 else answer

    server.change = not_ready
    start(server).sample([5])
    assert left[0] < 0


def test_a_server_that_never_comes_ends_the_start(start, fake, backend: str) -> None:
    server = fake(backend)
    server.__exit__()
    with pytest.raises(AndonError) as caught:
        start(server, backend_timeout_s=0.5)
    assert caught.value.reason == "BACKEND_UNAVAILABLE"


def test_another_tokenizer_is_noticed_at_the_start(start, fake) -> None:
    server = fake("tgi")

    def read_otherwise(request: Received, answer: Answer) -> Answer:
        if isinstance(answer.body, dict) and "details" in answer.body:
            answer.body["details"]["prefill"][0]["id"] += 1
        return answer

    replace_answers(server, read_otherwise)
    with pytest.raises(AndonError) as caught:
        start(server)
    assert caught.value.reason == "BACKEND_ANSWER_INVALID"


def test_a_server_without_token_ids_is_refused_at_the_start(start, fake) -> None:
    server = fake("openai")

    def plain_openai(request: Received, answer: Answer) -> Answer:
        if isinstance(answer.body, dict) and "choices" in answer.body:
            for name in ("token_ids", "prompt_token_ids"):
                answer.body["choices"][0].pop(name)
        return answer

    replace_answers(server, plain_openai)
    with pytest.raises(AndonError) as caught:
        start(server)
    assert caught.value.reason == "BACKEND_ANSWER_INVALID"


def test_logits_in_place_of_log_probabilities_are_refused_at_the_start(start, fake) -> None:
    with pytest.raises(AndonError) as caught:
        start(fake("openai", mode="raw_logits"))
    assert caught.value.reason == "UNSUPPORTED_BY_BACKEND"


# --- tokens ---


def test_the_token_is_read_again_and_no_other_is_sent(
    start, fake, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    token_file = tmp_path / "token"
    token_file.write_text("first\n")
    server = fake(backend, token="first")
    stand = start(server, backend_token_file=token_file)
    stand.sample([5])
    server.token = "second"
    code, info, _ = refused(lambda: stand.sample([5]))
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BACKEND_REFUSED")
    token_file.write_text("second\n")
    stand.sample([5])
    without = fake(backend)
    start(without).sample([5])
    sent = {request.headers.get("authorization", "") for request in (*server.requests, *without.requests)}
    assert not any("environment" in header for header in sent)
    assert sent >= {"Bearer first", "Bearer second"}


def test_hugging_faces_offline_switch_is_about_its_own_servers(
    start, fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    answer = start(fake("tgi")).sample([5], temperature=0)
    own = start(None).sample([5], temperature=0)
    assert tokens_of(answer) == tokens_of(own)
