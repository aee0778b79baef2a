"""``andon demo``: the whole loop on this machine, from documents to a measured policy and a report."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from andon.cli.demo_state import open_state
from andon.cli.endpoints import home_folder
from andon.cli.options import StoreOption
from andon.cli.output import JsonFlag, messages, print_json, results
from andon.cli.recipes import Recipe, packaged_recipe, read_recipe, with_beta
from andon.errors import InvalidArgumentError


def demo(
    seed: Annotated[int, typer.Option("--seed", help="Draws corpus, weights, samples and labelers.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the report, the models and the logs.")
    ] = Path("demo-out"),
    data: Annotated[
        str | None,
        typer.Option("--data", help="Your own documents with summaries: a JSONL file, a folder, or hf:NAME."),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option("--beta", min=0.0, help="KL coefficient of PPO; 0 shows over-optimisation."),
    ] = None,
    small: Annotated[
        bool,
        typer.Option("--small", help="Tiny sizes: shows that everything works, trains nothing worth it."),
    ] = False,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="A recipe of your own instead of the packaged one.")
    ] = None,
    running: Annotated[
        bool,
        typer.Option(
            "--running",
            help="Use the services that run already, found by ANDON_<SERVICE>_TARGET or in ./andon-home. The "
            "trainer must see --out under the same absolute path.",
        ),
    ] = False,
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Run the whole loop: fine-tune, sample, label, train a reward model, PPO, measure, report."""
    chosen = _recipe(recipe, data=data, small=small, beta=beta)
    if running and chosen.services:
        raise InvalidArgumentError(
            f"the recipe sets flags of services ({', '.join(chosen.services)}), which nobody can set on "
            "services that run already: take them out of the recipe",
            reason="FLAGS_OF_RUNNING_SERVICES",
        )
    if running and store is not None:
        raise InvalidArgumentError(
            "--running: the services that run have a store already; leave --store and ANDON_STORE out",
            reason="STORE_OF_RUNNING_SERVICES",
        )
    # Imported here: the statistics and plots take a second that `andon --help` must not.
    from andon.cli.demo_flow import PATIENCE_S, DemoFlow, DemoRequest
    from andon.cli.demo_report import measure, print_report
    from andon.cli.demo_services import RunningServices

    console = messages()
    wanted = {"seed": seed, "data": data, "recipe": chosen.model_dump(mode="json")}
    if store is not None:
        wanted["store"] = store
    state, begun = open_state(out, wanted)
    console.print(f"[bold]{chosen.title}[/] (seed {seed})", highlight=False)
    if begun:
        console.print(f"going on with {state.demo_id}, which was cut off", highlight=False)
    request = DemoRequest(out=out, seed=seed, data=data, recipe=chosen, store=store)
    services = RunningServices(home_folder(), patience_s=PATIENCE_S) if running else None
    with _terminate_as_interrupt(), DemoFlow(request, state, console, services=services) as flow:
        try:
            report, page = measure(flow, flow.run())
        except KeyboardInterrupt:
            console.print(f"{'' if running else 'stopping the services; '}the same command goes on from here")
            raise
    state.finished = True
    state.save()
    if as_json:
        print_json(
            {
                "win_rates": report.win_rates,
                "kl_nats": report.kl_nats,
                "reward_model": report.reward_model,
                "policies": report.policies,
                "seconds": report.seconds,
                "models": report.models,
                "model_store": report.model_store,
                "report": page,
            }
        )
        return
    print_report(report, results())
    results().print(
        f"{report.seconds['total']:.0f} s in all; report: {page}", soft_wrap=True, highlight=False
    )


def _recipe(path: Path | None, *, data: str | None, small: bool, beta: float | None) -> Recipe:
    if path is not None:
        chosen = read_recipe(path)
    else:
        name = "builtin" if data is None else "documents"
        chosen = packaged_recipe(("documents-small" if data else "small") if small else name)
    return chosen if beta is None else with_beta(chosen, beta)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does; once it is ending, neither cuts the clean-up short."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for further in (signal.SIGINT, signal.SIGTERM):
            signal.signal(further, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
