"""Decides how a service learns its configuration: flags over environment over a file over defaults.

``python -m services.<name>`` calls ``load_config`` with its own class derived from ``ServerConfig``. A flag,
file key or ``ANDON_<SERVICE>_*`` variable that names no field ends the process with exit code 2 and one clear
message; so do files of certificates and tokens that cannot be used. An address that other machines can reach
and on which nothing is encrypted must be allowed by name.

    python -m services.policy --config policy.yaml --port 50061 --no-reflection
    ANDON_POLICY_PORT=50061 python -m services.policy
"""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from andon.errors import InvalidArgumentError
from andon.rpc.loopback import is_loopback
from andon.rpc.tls import TlsFiles, read_server_material
from andon.rpc.token_file import read_token_file

# ANDON_<SERVICE>_TARGET tells clients where a service is and may well stand in a server's environment too.
VARIABLES_OF_OTHERS = frozenset({"target", "config"})

Port = Annotated[int, Field(ge=0, le=65535)]

# A file, a variable set or a command line after parsing: nested mappings of whatever types the fields take.
Values = dict[str, Any]


class ProgramConfig(BaseSettings):
    """What every program can be told that ``load_config`` configures."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least severe level that is logged."""
    log_format: Literal["json", "console"] = "json"
    """One JSON object per line, or lines for people."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take arguments only: ``load_config`` merges the other sources, so a test's config depends on
        nothing else.
        """
        return (init_settings,)


class ServerConfig(ProgramConfig):
    """What every service can be told. Services add fields and set their own default ports."""

    host: str = "127.0.0.1"
    """Address of the gRPC port."""
    port: Port
    """gRPC port; 0 takes a free one and says which in the ready line."""
    metrics_host: str = "127.0.0.1"
    """Address of the Prometheus port."""
    metrics_port: Port
    """Prometheus port; 0 takes a free one."""
    health_host: str = "127.0.0.1"
    """Address of the health port."""
    health_port: Port | None = None
    """A further port with nothing but grpc.health.v1, never encrypted, for probes that speak no TLS; 0 takes
    a free one. Off by default.
    """
    allow_insecure_bind: bool = False
    """Allows addresses that other machines can reach, although the connection is not encrypted. With TLS
    these are the metrics and the health port.
    """
    tls_certificate: Path | None = None
    """PEM file with the certificate chain; with it the gRPC port speaks TLS only. Read again when it
    changes.
    """
    tls_key: Path | None = None
    """PEM file with the certificate's key, without a password."""
    tls_client_ca: Path | None = None
    """PEM file with authorities; with it callers must show a certificate of one of them (mTLS)."""
    tokens: Path | None = None
    """YAML or JSON list of {name, role, sha256}: with it every call needs a bearer token whose role may make
    it. Read again when it changes.
    """
    calls_per_second: float | None = Field(default=None, gt=0)
    """How many calls one caller may make in the long run; further ones answer RESOURCE_EXHAUSTED with
    RATE_LIMITED. No limit by default.
    """
    calls_burst: int | None = Field(default=None, ge=1)
    """How many calls one caller may make at once; the calls of one second when left out."""
    reflection: bool = True
    """Lets tools such as grpcurl and buf curl ask for the schema."""
    max_message_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    """The largest message taken or sent; larger ones answer RESOURCE_EXHAUSTED."""
    max_concurrent_calls: int = Field(default=1000, ge=1)
    """Calls in progress, streams included, over which gRPC itself answers RESOURCE_EXHAUSTED."""
    default_deadline_s: float = Field(default=600.0, gt=0)
    """Deadline of a call with a single answer whose caller set none."""
    default_stream_deadline_s: float = Field(default=86400.0, gt=0)
    """Deadline of a call with a stream of answers whose caller set none."""
    keepalive_s: float = Field(default=30.0, gt=0)
    """Idle time after which the server checks that the peer is alive."""
    max_connection_age_s: float = Field(default=1800.0, gt=0)
    """Age at which a client is told to connect anew, so that new replicas get traffic. Running calls are
    not cut.
    """
    drain_probe_period_s: float = Field(default=0.0, ge=0)
    """How long the port stays open after health says NOT_SERVING, so that load balancers see it."""
    drain_grace_s: float = Field(default=10.0, ge=0)
    """How long running calls may take after SIGTERM before they are cancelled."""

    def open_addresses(self) -> list[tuple[str, str]]:
        """Fields with addresses on which nothing is encrypted, and their values."""
        addresses = [] if self.tls_certificate is not None else [("host", self.host)]
        addresses.append(("metrics_host", self.metrics_host))
        if self.health_port is not None:
            addresses.append(("health_host", self.health_host))
        return addresses

    @property
    def tls_files(self) -> TlsFiles | None:
        """What the gRPC port is encrypted with; None where it is not."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TlsFiles(certificate=self.tls_certificate, key=self.tls_key, client_ca=self.tls_client_ca)

    @property
    def burst(self) -> int:
        """How many calls one caller may make at once, where there is a limit."""
        return self.calls_burst or max(1, math.ceil(self.calls_per_second or 1.0))

    @model_validator(mode="after")
    def _check_files(self) -> ServerConfig:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key are given together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        if self.calls_burst is not None and self.calls_per_second is None:
            raise ValueError("calls_burst needs calls_per_second")
        try:
            if self.tls_files is not None:
                read_server_material(self.tls_files)
            if self.tokens is not None:
                read_token_file(self.tokens)
        except InvalidArgumentError as error:
            raise ValueError(error.message) from error
        return self

    @model_validator(mode="after")
    def _refuse_open_bind(self) -> ServerConfig:
        if self.allow_insecure_bind:
            return self
        for field, host in self.open_addresses():
            if not is_loopback(host):
                raise ValueError(
                    f"{field} {host!r} can be reached from other machines and nothing encrypts it; "
                    "set allow_insecure_bind if the network is protected by other means"
                )
        return self


C = TypeVar("C", bound=ProgramConfig)


class _EnvironmentSource(EnvSettingsSource):
    """Takes lists as people write them, ``a,b``, beside JSON."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Decode JSON, and split what is none at its commas; whether that fits is the field's to say. A
        number is a list of one.
        """
        try:
            decoded = super().decode_complex_value(field_name, field, value)
        except ValueError:
            decoded = 0
        is_number = isinstance(decoded, int | float) and not isinstance(decoded, bool)
        return [part.strip() for part in str(value).split(",")] if is_number else decoded


def load_config(
    config_type: type[C],
    *,
    service: str,
    module: str | None = None,
    argv: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> C:
    """Merge flags, environment and file into a valid config, or end the process with exit code 2 and a
    message. ``module`` is what ``python -m`` runs; ``services.<service>`` when left out.
    """
    module = module or f"services.{service}"
    arguments = list(sys.argv[1:] if argv is None else argv)
    variables = dict(os.environ if environment is None else environment)
    prefix = f"ANDON_{service.upper()}_"
    try:
        arguments, file_name = _take_config_flag(arguments)
        file_name = file_name or variables.get(prefix + "CONFIG")
        values = _read_file(Path(file_name)) if file_name else {}
        _merge(values, _read_environment(config_type, variables, prefix))
        _merge(values, _read_flags(config_type, arguments, module))
        return config_type(**values)
    except ValidationError as error:
        _exit(module, "; ".join(_describe(config_type, detail) for detail in error.errors()))
    except (SettingsError, OSError, yaml.YAMLError, ValueError) as error:
        _exit(module, str(error))


def _exit(module: str, message: str) -> NoReturn:
    sys.stderr.write(f"{module}: bad configuration: {message}\n")
    raise SystemExit(2)


def _take_config_flag(arguments: list[str]) -> tuple[list[str], str | None]:
    """Split ``--config FILE`` from the other flags, which must be known before the file is read."""
    rest: list[str] = []
    file_name: str | None = None
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--config":
            file_name = next(remaining, None)
            if file_name is None:
                raise ValueError("--config needs a file name")
        elif argument.startswith("--config="):
            file_name = argument.removeprefix("--config=")
        else:
            rest.append(argument)
    return rest, file_name


def _read_file(path: Path) -> Values:
    """Read YAML, of which JSON is a part."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path}: the top level must be a mapping of keys to values")
    return content


def _read_environment(config_type: type[C], variables: Mapping[str, str], prefix: str) -> Values:
    names = [name.removeprefix(prefix).lower() for name in variables if name.startswith(prefix)]
    for name in names:
        field = name.split("__")[0]
        if field not in config_type.model_fields and field not in VARIABLES_OF_OTHERS:
            raise ValueError(f"unknown variable {prefix}{name.upper()}{_suggestion(field, config_type)}")
    source = _EnvironmentSource(
        config_type, case_sensitive=False, env_prefix=prefix, env_nested_delimiter="__"
    )
    source.env_vars = {name.lower(): value for name, value in variables.items()}
    return source()


def _read_flags(config_type: type[C], arguments: list[str], module: str) -> Values:
    """Parse the flags; argparse itself ends the process with code 2 on an unknown one and 0 on --help."""
    source: CliSettingsSource[Any] = CliSettingsSource(  # the parser type behind it is a free parameter
        config_type,
        cli_prog_name=f"python -m {module}",
        cli_parse_args=[_with_dashes(argument) for argument in arguments],
        cli_implicit_flags=True,
        cli_kebab_case=True,
        cli_exit_on_error=True,
        cli_hide_none_type=True,
    )
    return source()


def _with_dashes(argument: str) -> str:
    """Spell a flag with dashes, so that ``--metrics_port`` is as good as ``--metrics-port``."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value


def _merge(values: Values, stronger: Mapping[str, Any]) -> None:
    """Put ``stronger`` over ``values``, key by key also inside nested mappings."""
    for key, value in stronger.items():
        present = values.get(key)
        if isinstance(value, Mapping) and isinstance(present, dict):
            _merge(present, value)
        else:
            values[key] = value


def _describe(config_type: type[BaseModel], detail: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key {place}{_suggestion(place, config_type)}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _suggestion(name: str, config_type: type[BaseModel]) -> str:
    near = difflib.get_close_matches(name, config_type.model_fields, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
