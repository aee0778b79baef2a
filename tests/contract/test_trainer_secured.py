"""A run between services that encrypt and ask for tokens, while certificates and tokens change."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from andon.client.policy import PolicyClient
from andon.client.trainer import Progress, RunState
from andon.errors import PermissionDeniedError, UnauthenticatedError
from tests.certificates import Authority, CertificateFiles, write_files
from tests.ppo_world import TIMEOUT_S, World, world

__all__ = ["world"]

TOKENS = {
    "trainer": "the first token of the trainer",
    "trainer again": "the second token of the trainer",
    "researcher": "the token of a researcher",
    "client": "the token of a client",
}


def write_tokens(path: Path, roles: Mapping[str, str]) -> None:
    entries = [
        {"name": name, "role": role, "sha256": hashlib.sha256(TOKENS[name].encode()).hexdigest()}
        for name, role in roles.items()
    ]
    write_at_once(path, json.dumps(entries))


def write_at_once(path: Path, text: str) -> None:
    """As a cluster changes mounted files: nobody ever reads half of one."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def services(tmp_path: Path, authority: Authority) -> CertificateFiles:
    return write_files(tmp_path / "services", authority, authority.sign("services"))


@pytest.fixture
def callers(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> CertificateFiles:
    files = write_files(tmp_path / "callers", authority, authority.sign("callers"))
    monkeypatch.setenv("ANDON_TLS_CA", str(files.ca))
    monkeypatch.setenv("ANDON_TLS_CERTIFICATE", str(files.certificate))
    monkeypatch.setenv("ANDON_TLS_KEY", str(files.key))
    monkeypatch.delenv("ANDON_TOKEN", raising=False)
    return files


def test_a_run_goes_on_while_certificates_authorities_and_tokens_change(
    world: World,
    tmp_path: Path,
    authority: Authority,
    services: CertificateFiles,
    callers: CertificateFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens, own = tmp_path / "tokens", tmp_path / "token"
    write_tokens(tokens, {"trainer": "trainer", "researcher": "researcher", "client": "client"})
    world.settings = {
        "tls_certificate": services.certificate,
        "tls_key": services.key,
        "tls_client_ca": services.ca,
        "tokens": tokens,
    }
    monkeypatch.setenv("ANDON_TOKEN", TOKENS["researcher"])
    world.serve_models()
    client = world.serve_trainer()
    # The run's own connections are opened when it begins.
    monkeypatch.delenv("ANDON_TOKEN")
    write_at_once(own, TOKENS["trainer"])
    monkeypatch.setenv("ANDON_TOKEN_FILE", str(own))
    run = client.start_run("ppo", world.config(updates=12))

    new = Authority("the next authority")
    changes = [
        # Both authorities are trusted before anybody shows a certificate of the new one.
        lambda: [files.ca.write_bytes(authority.pem + new.pem) for files in (services, callers)],
        lambda: [files.write(new.sign("new")) for files in (services, callers)],
        lambda: [files.ca.write_bytes(new.pem) for files in (services, callers)],
        lambda: write_tokens(
            tokens, {"trainer": "trainer", "trainer again": "trainer", "researcher": "researcher"}
        ),
        lambda: write_at_once(own, TOKENS["trainer again"]),
        lambda: write_tokens(tokens, {"trainer again": "trainer", "researcher": "researcher"}),
    ]
    for event in client.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S):
        if isinstance(event.event, Progress) and changes:
            changes.pop(0)()
    for change in changes:
        change()
    ended = client.get(run.run_id)
    assert ended.state is RunState.SUCCEEDED, ended.status_message
    assert str(ended.output_model) == "policy/12"

    # What was taken away is of no more use, and a researcher's token sends no weights.
    policy = world.policies[0]
    for name, error in (("trainer", UnauthenticatedError), ("researcher", PermissionDeniedError)):
        write_at_once(own, TOKENS[name])
        with PolicyClient(policy.target) as caller, pytest.raises(error):
            caller.update_weights(NoWeights(world.store.resolve("policy/12").version), iter([]))
    write_at_once(own, TOKENS["trainer again"])
    with PolicyClient(policy.target) as caller:
        assert caller.model_info().model == ended.output_model


class NoWeights:
    """A header as ``update_weights`` takes it."""

    def __init__(self, model: object) -> None:
        self.model = model
        self.tensors = ()
        self.size_bytes = 0
        self.checksum = ""
        self.base = None
        self.memory = None
