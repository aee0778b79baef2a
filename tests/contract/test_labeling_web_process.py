"""The labeling service as a process: its ready line names the site, its log no secret."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.tokens import TOKENS, write_tokens

TIMEOUT_S = 60


def start(folder: Path, *flags: str, **environment: str) -> subprocess.Popen[str]:
    ports = ["--port=0", "--metrics-port=0", "--web-port=0"]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "services.labeling"),
            *(*ports, f"--database=sqlite:///{folder}/labeling.sqlite3", *flags),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ".", **environment},
    )


def test_the_ready_line_says_where_the_site_is_and_the_log_no_secret(tmp_path: Path) -> None:
    server = start(
        tmp_path,
        f"--tokens-file={write_tokens(tmp_path)}",
        "--oidc-issuer=https://id.example.org",
        "--oidc-client-id=andon",
        ANDON_LABELING_OIDC_CLIENT_SECRET="very-secret",
    )
    with server:
        assert server.stdout is not None
        word, _, facts = server.stdout.readline().partition(" ")
        ready = json.loads(facts)
        assert word == "ANDON_READY"
        assert ready["web_url"] == f"http://127.0.0.1:{ready['web_port']}"
        with httpx.Client(base_url=ready["web_url"], trust_env=False) as client:
            assert client.get("/healthz").text == "ok\n"
            assert client.get("/invitation/a-secret-of-a-link").status_code == 404
        server.send_signal(signal.SIGTERM)
        _, told = server.communicate(timeout=TIMEOUT_S)
    assert server.returncode == 0, told
    lines = [json.loads(line) for line in told.splitlines()]
    pages = [line["page"] for line in lines if line["event"] == "page_answered"]
    assert pages == ["/invitation/{token}"]
    for secret in (*TOKENS.values(), "very-secret", "a-secret-of-a-link"):
        assert secret not in told


def test_tokens_that_everybody_may_read_end_the_start(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path)
    tokens.chmod(0o644)
    with start(tmp_path, f"--tokens-file={tokens}") as server:
        out, told = server.communicate(timeout=TIMEOUT_S)
    assert (server.returncode, out) == (1, "")
    last = json.loads(told.splitlines()[-1])
    assert (last["event"], last["reason"]) == ("start_failed", "TOKENS_FILE")
