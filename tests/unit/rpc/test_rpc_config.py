"""Where a setting comes from, and what happens to one that names nothing."""

import json
import re
from datetime import timedelta

import pytest
from pydantic import BaseModel, ValidationError

from andon.rpc.config import Port, ServerConfig, load_config
from andon.rpc.loopback import is_loopback
from tests.certificates import Authority, CertificateFiles, write_files


class ModelSection(BaseModel, extra="forbid"):
    dtype: str = "float32"
    threads: int = 1


class ExampleConfig(ServerConfig):
    port: Port = 50099
    metrics_port: Port = 9199
    model: ModelSection = ModelSection()
    targets: tuple[str, ...] = ()


def load(*argv: str, **environment: str) -> ExampleConfig:
    return load_config(ExampleConfig, service="example", argv=argv, environment=environment)


def test_defaults_need_nothing():
    config = load()
    assert (config.host, config.port, config.metrics_port) == ("127.0.0.1", 50099, 9199)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path):
    file = tmp_path / "example.yaml"
    file.write_text("port: 1\nmetrics_port: 2\nmodel: {dtype: float16, threads: 3}\nlog_level: ERROR\n")
    config = load(
        "--config",
        str(file),
        "--port=11",
        "--model.threads",
        "7",
        ANDON_EXAMPLE_PORT="21",
        ANDON_EXAMPLE_METRICS_PORT="22",
    )
    assert config.port == 11
    assert config.metrics_port == 22
    assert config.model == ModelSection(dtype="float16", threads=7)
    assert config.log_level == "ERROR"
    assert config.drain_grace_s == 10.0


def test_json_files_and_a_file_named_by_the_environment_work(tmp_path):
    file = tmp_path / "example.json"
    file.write_text(json.dumps({"targets": ["a:1", "b:2"]}))
    assert load(ANDON_EXAMPLE_CONFIG=str(file)).targets == ("a:1", "b:2")


@pytest.mark.parametrize("flag", ["--metrics-port", "--metrics_port"])
def test_flags_take_dashes_and_underscores(flag):
    assert load(flag, "5").metrics_port == 5


@pytest.mark.parametrize("value", ["a:1,b:2", '["a:1", "b:2"]'])
def test_lists_come_with_commas_or_as_json(value):
    assert load(ANDON_EXAMPLE_TARGETS=value).targets == ("a:1", "b:2")
    assert load("--targets", value).targets == ("a:1", "b:2")


def test_nested_fields_come_from_the_environment_with_two_underscores():
    assert load(ANDON_EXAMPLE_MODEL__DTYPE="bfloat16").model.dtype == "bfloat16"


def test_switches_have_a_negative_form():
    assert load("--no-reflection").reflection is False


@pytest.mark.parametrize(
    ("argv", "environment", "told"),
    [
        (["--prot", "1"], {}, "--prot"),
        (["--model.dtipe", "x"], {}, "--model.dtipe"),
        (["stray"], {}, "stray"),
        ([], {"ANDON_EXAMPLE_PROT": "1"}, r"ANDON_EXAMPLE_PROT \(did you mean port\?\)"),
        ([], {"ANDON_EXAMPLE_MODEL__DTIPE": "1"}, r"model\.dtipe"),
        (["--port", "70000"], {}, "port"),
        (["--port", "many"], {}, "port"),
        (["--default-deadline-s", "0"], {}, "default_deadline_s"),
        (["--log-level", "LOUD"], {}, "log_level"),
        (["--config"], {}, "--config needs a file name"),
        (["--config", "/no/such/file.yaml"], {}, "No such file"),
        (["--host", "0.0.0.0"], {}, "allow_insecure_bind"),
        (["--metrics-host", "::"], {}, "allow_insecure_bind"),
    ],
)
def test_what_names_nothing_or_fits_nothing_ends_with_code_2_and_a_message(argv, environment, told, capsys):
    with pytest.raises(SystemExit) as ended:
        load(*argv, **environment)
    assert ended.value.code == 2
    assert re.search(told, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("content", "told"),
    [("prot: 1", "unknown key prot"), ("[1, 2]", "mapping"), ("{", "bad configuration"), ("1: 2", "mapping")],
)
def test_a_bad_file_ends_with_code_2_and_a_message(content, told, tmp_path, capsys):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(SystemExit) as ended:
        load("--config", str(file))
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_help_tells_every_field_and_ends_with_code_0(capsys):
    with pytest.raises(SystemExit) as ended:
        load("--help")
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "--model.dtype" in told
    assert "RESOURCE_EXHAUSTED" in told


def test_the_address_of_a_service_for_its_clients_is_no_mistake():
    assert load(ANDON_EXAMPLE_TARGET="127.0.0.1:50099").port == 50099


def test_variables_of_the_surroundings_are_not_read_when_a_config_is_made_directly(monkeypatch):
    monkeypatch.setenv("HOST", "10.0.0.1")
    monkeypatch.setenv("PORT", "1")
    assert ExampleConfig().host == "127.0.0.1"
    assert ExampleConfig().port == 50099


def test_an_open_bind_must_be_allowed_by_name():
    with pytest.raises(ValidationError):
        ExampleConfig(host="0.0.0.0")
    assert ExampleConfig(host="0.0.0.0", allow_insecure_bind=True).host == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.4", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback_addresses(host, expected):
    assert is_loopback(host) is expected


@pytest.fixture
def pki(tmp_path) -> CertificateFiles:
    authority = Authority()
    return write_files(tmp_path / "pki", authority, authority.sign("server"))


def test_with_tls_only_the_plain_ports_must_be_allowed_by_name(pki):
    tls = {"tls_certificate": pki.certificate, "tls_key": pki.key}
    assert ExampleConfig(host="0.0.0.0", **tls).host == "0.0.0.0"
    with pytest.raises(ValidationError, match="metrics_host"):
        ExampleConfig(host="0.0.0.0", metrics_host="0.0.0.0", **tls)
    with pytest.raises(ValidationError, match="health_host"):
        ExampleConfig(host="0.0.0.0", health_host="0.0.0.0", health_port=1, **tls)
    assert ExampleConfig(health_host="0.0.0.0").health_port is None, "nothing listens there"


def test_files_that_cannot_be_used_end_with_code_2_and_a_message(pki, tmp_path, capsys):
    def told(*argv: str) -> str:
        with pytest.raises(SystemExit) as ended:
            load(*argv)
        assert ended.value.code == 2
        return capsys.readouterr().err

    certificate, key = f"--tls-certificate={pki.certificate}", f"--tls-key={pki.key}"
    load(certificate, key, f"--tls-client-ca={pki.ca}")
    assert "tls_certificate and tls_key are given together" in told(certificate)
    assert "tls_certificate and tls_key are given together" in told(key)
    assert "tls_client_ca needs tls_certificate" in told(f"--tls-client-ca={pki.ca}")
    assert "/none cannot be read" in told(certificate, "--tls-key=/none")
    assert "tls.key holds no PEM certificate" in told(f"--tls-certificate={pki.key}", key)
    assert "tls.key holds no PEM certificates" in told(certificate, key, f"--tls-client-ca={pki.key}")
    late = Authority().sign("late", ends_in=timedelta(seconds=-1))
    pki.write(late)
    assert "tls.crt expired at" in told(certificate, key)
    assert "tokens file /none cannot be read" in told("--tokens=/none")
    (tmp_path / "tokens").write_text("[{name: a, role: king}]")
    assert "entry 1 is not {name, role, sha256}" in told(f"--tokens={tmp_path / 'tokens'}")


def test_a_burst_without_a_rate_would_be_ignored():
    with pytest.raises(ValidationError, match="calls_burst needs calls_per_second"):
        ExampleConfig(calls_burst=3)
    assert ExampleConfig(calls_per_second=0.1).burst == 1
    assert ExampleConfig(calls_per_second=2.5).burst == 3
    assert ExampleConfig(calls_per_second=2.5, calls_burst=7).burst == 7
