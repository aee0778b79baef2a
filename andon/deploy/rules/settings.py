"""Every setting is one that the service has, with a value that it takes, and agrees with the pod."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from andon.deploy.environment import Variable, environment_of, path_problem, service_of, settings_of
from andon.deploy.findings import Finding
from andon.deploy.objects import Json, Pods
from andon.deploy.rules import Scene

# Variables that are no service's settings, but of the clients and the command line.
CLIENT_PATHS = ("ANDON_TLS_CA", "ANDON_TLS_CERTIFICATE", "ANDON_TLS_KEY", "ANDON_TOKEN_FILE")
CLIENT_VARIABLES = frozenset({*CLIENT_PATHS, "ANDON_TOKEN", "ANDON_HOME", "ANDON_STORE", "ANDON_TRACEBACK"})
VARIABLES_OF_CLIENTS = frozenset({"target"})
# Paths that a service reads only; others it may write.
READ_ONLY = frozenset({"tls_certificate", "tls_key", "tls_client_ca", "tokens", "tokens_file"})
STORE_WRITERS = frozenset({"trainer", "canary"})
TRUE_WORDS, FALSE_WORDS = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


def setting_findings(scene: Scene) -> Iterator[Finding]:
    """Settings that a service would refuse or misunderstand."""
    for pods in scene.cluster.pods:
        for container in pods.containers:
            variables = environment_of(scene, container)
            service = service_of(container)
            yield from _strangers(scene, pods, service, variables)
            for name in CLIENT_PATHS:
                value = variables[name].value if name in variables else None
                if value is not None:
                    problem = path_problem(scene, pods, container, value, is_written=False)
                    if problem is not None:
                        yield Finding(rule="setting-path", where=pods.where, message=f"{name}: {problem}")
            if service is not None and service in scene.contract.settings:
                yield from _of_service(scene, pods, container, service, variables)
            elif service is not None:
                yield Finding(rule="setting", where=pods.where, message=f"there is no service {service}")


def _strangers(
    scene: Scene, pods: Pods, service: str | None, variables: Mapping[str, Variable]
) -> Iterator[Finding]:
    for name in variables:
        if not name.startswith("ANDON_") or name in CLIENT_VARIABLES:
            continue
        owner = name.split("_")[1].lower()
        field = name.removeprefix(f"ANDON_{owner.upper()}_").lower()
        if owner in scene.contract.settings and field in VARIABLES_OF_CLIENTS:
            continue
        if owner not in scene.contract.settings:
            yield Finding(rule="setting", where=pods.where, message=f"{name} is no variable of Andon")
        elif owner != service:
            message = f"{name} is a setting of {owner}, and this container does not run it"
            yield Finding(rule="setting", where=pods.where, message=message)


def _of_service(
    scene: Scene,
    pods: Pods,
    container: Mapping[str, Json],
    service: str,
    variables: Mapping[str, Variable],
) -> Iterator[Finding]:
    fields: Mapping[str, Any] = scene.contract.settings[service]["properties"]
    settings = settings_of(service, variables)
    for name, variable in settings.items():
        if name in VARIABLES_OF_CLIENTS:
            continue
        variable_name = f"ANDON_{service.upper()}_{name.upper()}"
        schema = fields.get(name)
        if schema is None:
            near = difflib.get_close_matches(name, fields, n=1)
            suggestion = f" (did you mean {near[0]}?)" if near else ""
            message = f"{variable_name}: {service} has no setting {name}{suggestion}"
            yield Finding(rule="setting", where=pods.where, message=message)
        elif variable.value is not None and "$(" not in variable.value:
            if not takes(json.dumps(schema, sort_keys=True), variable.value):
                message = f"{variable_name}: {variable.value!r} is no value for {_shown(schema)}"
                yield Finding(rule="setting-value", where=pods.where, message=message)
            elif _is_path(schema) and "://" not in variable.value:
                is_written = name not in READ_ONLY and (name != "store" or service in STORE_WRITERS)
                problem = path_problem(scene, pods, container, variable.value, is_written=is_written)
                if problem is not None:
                    message = f"{variable_name}: {problem}"
                    yield Finding(rule="setting-path", where=pods.where, message=message)
    yield from _ports(pods, fields, settings)
    yield from _grace(pods, fields, settings)


@cache
def takes(schema: str, text: str) -> bool:
    """Whether some reading of a variable's text, as the services read it, fits the schema (JSON)."""
    validator = Draft202012Validator(json.loads(schema))
    return any(validator.is_valid(reading) for reading in _readings(text))


def _readings(text: str) -> Iterator[Json]:
    yield text
    if text.lower() in TRUE_WORDS | FALSE_WORDS:
        yield text.lower() in TRUE_WORDS
    try:
        reading = json.loads(text)
    except ValueError:
        reading = None
    else:
        yield reading
    if reading is None or isinstance(reading, int | float):
        parts = [part.strip() for part in text.split(",")]
        yield parts
        if all(part.isdigit() for part in parts):
            yield [int(part) for part in parts]


def _is_path(schema: Mapping[str, Any]) -> bool:
    options: Sequence[Mapping[str, Any]] = schema.get("anyOf", [schema])
    return any(option.get("format") == "path" for option in options)


def _shown(schema: Mapping[str, Any]) -> str:
    facts = {key: value for key, value in schema.items() if key != "default"}
    return json.dumps(facts, sort_keys=True)


def value_of(fields: Mapping[str, Any], settings: Mapping[str, Variable], name: str) -> str | None:
    """What a setting comes to, its default included; None where only the cluster knows."""
    if name in settings:
        return settings[name].value
    default = fields.get(name, {}).get("default")
    return None if default is None else str(default)


def _ports(pods: Pods, fields: Mapping[str, Any], settings: Mapping[str, Variable]) -> Iterator[Finding]:
    for setting, port in (
        ("port", "grpc"),
        ("metrics_port", "metrics"),
        ("health_port", "health"),
        ("web_port", "web"),
    ):
        if setting not in fields:
            continue
        number, named = value_of(fields, settings, setting), pods.ports.get(port)
        if number is not None and named is not None and number != str(named):
            message = f"{setting} is {number}, but the container's port {port} is {named}"
            yield Finding(rule="setting-port", where=pods.where, message=message)
        elif number is None and named is not None and setting == "health_port":
            message = f"the container names a port {port}, but {setting} is off"
            yield Finding(rule="setting-port", where=pods.where, message=message)
        host = value_of(fields, settings, setting.removesuffix("port") + "host")
        if named is not None and host is not None and host.startswith(("127.", "localhost", "::1")):
            message = f"port {port} listens on {host}, which only the pod itself can reach"
            yield Finding(rule="setting-port", where=pods.where, message=message)


def _grace(pods: Pods, fields: Mapping[str, Any], settings: Mapping[str, Variable]) -> Iterator[Finding]:
    parts = ("drain_probe_period_s", "drain_grace_s", "interrupt_grace_s")
    needed_s = 0.0
    for part in parts:
        text = value_of(fields, settings, part)
        try:
            needed_s += float(text or 0.0)
        except ValueError:  # said already: no value for the setting
            return
    given_s = pods.spec.get("terminationGracePeriodSeconds", 30)
    if given_s <= needed_s:
        message = f"it is killed after {given_s} s, but may drain for {needed_s:g} s"
        yield Finding(rule="termination-grace", where=pods.where, message=message)
