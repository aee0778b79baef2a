"""``andon up``: all services on this machine, in the foreground, until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from andon.cli.endpoints import ENVOY, POLICY_CANARY, home_folder, store_location
from andon.cli.options import HomeOption, StoreOption
from andon.cli.output import JsonFlag, messages, print_json, print_table
from andon.cli.settings import read_settings, write_service_configs
from andon.cli.supervisor import HOST, ChildEvent, Supervisor, default_ports, free_ports
from andon.client.access import AccessClient, Invitation
from andon.client.connection import TRACK_HEADER
from andon.errors import InvalidArgumentError
from andon.modeling.store import ModelStore

# What is served from a store that has it: the first of these names.
SERVED_MODELS = {
    "policy": ("policy@stable", "policy@latest", "sft@latest"),
    "reference": ("sft@latest",),
    "reward": ("reward@stable", "reward@latest"),
}

FIRST_INVITATION_S = 86_400.0  # the link stands on a screen, so it is good for a day


class StopSignal:
    """Turns SIGINT and SIGTERM into an event while it is entered, so that a clean-up is never cut short."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.number = 0

    def __enter__(self) -> StopSignal:
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        self.event.set()


def up(
    home: HomeOption = None,
    store: StoreOption = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML or JSON with one section of settings per service."),
    ] = None,
    any_ports: Annotated[
        bool, typer.Option("--free-ports", help="Take any free ports instead of the usual ones.")
    ] = False,
    canary: Annotated[
        bool,
        typer.Option(
            "--canary",
            help="Also run what `andon canary` needs: a second policy process, Envoy to split the traffic, "
            "and the controller. It probes with the prompts that --config names in the section canary.",
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run all services on this machine until Ctrl-C.

    They serve the latest models of the store, if it has some and --config names no others.
    """
    folder = home_folder(home)
    console = messages()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {} if config is None else read_settings(config)
    if canary:
        _refuse_encrypted_policy(settings)
    config_files = write_service_configs(settings, folder, canary=canary) if settings else {}

    def tell(event: ChildEvent) -> None:
        console.print(f"[yellow]{event.service}[/] {event.message}")

    supervisor = Supervisor(
        folder,
        store=store,
        ports=free_ports(canary=canary) if any_ports else default_ports(canary=canary),
        config_files=config_files,
        arguments=models_to_serve(ModelStore(store_location(store, home=folder)), settings),
        on_event=tell,
    )
    with StopSignal() as stop:
        with console.status("starting the services ..."):
            supervisor.start(give_up=stop.event)
        try:
            first_admin = _first_admin(supervisor)
            _show_addresses(supervisor, site_url(supervisor, settings), first_admin, as_json=as_json)
            stop.event.wait()
        finally:
            with console.status("letting the services finish ..."):
                supervisor.stop()
    console.print("stopped")


def _refuse_encrypted_policy(settings: Mapping[str, Any]) -> None:
    if settings.get("policy", {}).get("tls_certificate"):
        raise InvalidArgumentError(
            "--canary: Envoy speaks plain text with the policy on this machine; take tls_certificate out of "
            "the section policy",
            reason="CANARY_WITH_TLS",
        )


def models_to_serve(store: ModelStore, settings: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The flags that name each service's model, for services whose settings leave it open."""
    known = store.aliases()
    flags: dict[str, dict[str, str]] = {}
    for service, names in SERVED_MODELS.items():
        if "model" in settings.get(service, {}):
            continue
        found = next((name for name in names if name in known), None)
        if found is not None:
            flags[service] = {"model": found}
    return flags


def site_url(supervisor: Supervisor, settings: Mapping[str, Any]) -> str:
    """Where people find the labeling site, with what the settings say of it."""
    labeling = settings.get("labeling", {})
    public_url = labeling.get("web_public_url")
    if public_url:
        return str(public_url)
    scheme = "https" if labeling.get("web_tls_certificate") else "http"
    return f"{scheme}://{HOST}:{supervisor.ports['labeling'].web}"


def _first_admin(supervisor: Supervisor) -> Invitation | None:
    """An invitation for the site's first admin; None when the site knows somebody already."""
    with AccessClient(supervisor.targets["labeling"], token=supervisor.tokens.admin) as access:
        if next(access.users(page_size=1), None) is not None:
            return None
        return access.invite("admin", lifetime_s=FIRST_INVITATION_S)


def _show_addresses(
    supervisor: Supervisor, site: str, first_admin: Invitation | None, *, as_json: bool
) -> None:
    if as_json:
        print_json(
            {
                "home": supervisor.home,
                "site": site,
                "first_admin_invitation": None if first_admin is None else first_admin.url,
                "services": {
                    service: {
                        "target": ports.target,
                        "metrics": ports.metrics_url,
                        "pid": supervisor.process_id(service),
                        "log": supervisor.log_path(service),
                    }
                    for service, ports in supervisor.ports.items()
                },
            },
            indent=None,
        )
        return
    print_table(
        None,
        ["service", "gRPC", "metrics", "log"],
        [
            (service, ports.target, ports.metrics_url, supervisor.log_path(service))
            for service, ports in supervisor.ports.items()
        ],
    )
    console = messages()
    console.print(f"labeling site: {site}", soft_wrap=True, highlight=False)
    if first_admin is not None:
        console.print("nobody has an account there yet; the first admin opens one here, once:")
        console.print(f"  {first_admin.url}", soft_wrap=True, highlight=False)
    if ENVOY in supervisor.ports:
        console.print(
            f"callers of {supervisor.targets[ENVOY]} get policy or, by its share, {POLICY_CANARY}; with the "
            f"metadata {TRACK_HEADER}: canary always the latter",
            soft_wrap=True,
            highlight=False,
        )
    console.print(f"serving from {supervisor.home}; Ctrl-C stops all of it")
