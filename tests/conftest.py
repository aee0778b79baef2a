"""Fixtures for all tests."""

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from tests.postgres import PostgresServer
    from tests.s3_server import FaultyProxy, S3Server


MEMORY = Path("/dev/shm")
MEMORY_BYTES = 4 * 1024**3


def pytest_configure() -> None:
    """Prepare this process, and what it starts, for all tests."""
    _keep_temporary_files_in_memory()
    # A shell starts what runs in its background deaf to Ctrl-C, and so would be every program under test.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _keep_temporary_files_in_memory() -> None:
    """Keep temporary files in memory where there is enough of it: databases wait for the disk at each commit.

    A process that is killed loses nothing there, which is what the durability tests are about.
    """
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK):
        return
    if shutil.disk_usage(MEMORY).free >= MEMORY_BYTES:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None  # decided anew


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with golden numbers and real data; tests that need it skip without it."""
    path = Path(os.environ.get("ANDON_SHARED", Path(__file__).parents[1] / ".." / "shared")).resolve()
    if not (path / "golden").is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"no golden numbers at {path}; set ANDON_SHARED")
        pytest.skip(f"no golden numbers at {path}; set ANDON_SHARED")
    return path


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """For a test that configures logging as a process does: later tests find it as it was, not a stream that
    pytest has closed.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


TINY_WIDTH = 32
TINY_POSITIONS = 64
TINY_WORDS = tuple(f"w{number}" for number in range(60))


@pytest.fixture(scope="session")
def make_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_tiny_model("gpt2", "causal_lm")`` gives the folder of a model with random weights, made by
    transformers.

    Kinds: "causal_lm" and "reward_model". The vocabulary is <pad> 0, <unk> 1, <tldr> 2, <eos> 3, w0 4 ... w59
    63; a prompt is "{document} <tldr>". Initial weights are large, so that outputs differ clearly between
    tokens.
    """

    @cache
    def make(model_type: str, kind: str, seed: int = 0) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

        from andon.modeling.text import word_level_codec

        torch.set_num_threads(1)
        codec = word_level_codec(TINY_WORDS, max_document_tokens=24)
        config = AutoConfig.for_model(
            model_type,
            vocab_size=len(TINY_WORDS) + 4,
            hidden_size=TINY_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TINY_POSITIONS,
            initializer_range=0.3,
            pad_token_id=0,
            eos_token_id=3,
            bos_token_id=3,
            **({} if model_type == "gpt2" else {"intermediate_size": 64}),
            **({"num_key_value_heads": 2} if model_type in ("llama", "qwen2") else {}),
            **({"num_labels": 1} if kind == "reward_model" else {}),
        )
        if kind == "reward_model":
            config.andon_normalization = {"method": "reference_zero", "gain": 1.0, "bias": -0.75}
        auto_class = AutoModelForCausalLM if kind == "causal_lm" else AutoModelForSequenceClassification
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = auto_class.from_config(config)
        folder = tmp_path_factory.mktemp(f"{model_type}-{kind}")
        model.save_pretrained(folder)
        codec.save(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def postgres_server() -> Iterator["PostgresServer"]:
    """A PostgreSQL server of the test process's own; tests that need it skip where there is none."""
    from tests.postgres import PostgresServer, find_binaries

    if find_binaries() is None:
        problem = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator["S3Server"]:
    """An S3 server of the test process's own; tests that need it skip where there is none."""
    from tests.s3_server import S3Server, find_problem

    problem = find_problem()
    if problem is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    with S3Server() as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The name of an empty bucket. The test's process and its children have what they need to use it."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return s3_server.new_bucket()


@pytest.fixture
def s3_proxy(
    s3_server: "S3Server", s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator["FaultyProxy"]:
    """What stands between the test's process and the server of ``s3_bucket``, and may fail."""
    from tests.s3_server import FaultyProxy

    with FaultyProxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once on each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/labeling.sqlite3"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database()


@pytest.fixture
def closed_port() -> int:
    """A port of loopback where nobody listens."""
    from tests.ports import free_port

    return free_port()
