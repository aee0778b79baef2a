"""Every panel of every dashboard has data once a real loop has run under a real Prometheus.

``ANDON_PICTURES=docs/images`` also draws the dashboards there (`make dashboards`).
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from andon.cli.demo_flow import DemoFlow, DemoRequest
from andon.cli.demo_state import open_state
from andon.cli.recipes import Recipe, packaged_recipe
from andon.cli.up_command import site_url
from andon.client.access import AccessClient
from andon.client.cord import CordClient
from andon.client.labeling import BatchSettings, LabelingClient
from andon.client.labeling_values import AnswerDraft, TaskDraft
from andon.client.policy import PolicyClient, SamplingParameters
from andon.corpus.records import CandidateRecord
from andon.modeling.versions import ModelVersion
from scripts.draw_dashboards import draw
from tests import monitoring
from tests.ports import free_port
from tests.prometheus import Prometheus
from tests.site import Person

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

PASSWORD = "a long password of rita"
RATE_INTERVAL = "20s"
UPDATES = 40


def recipe() -> Recipe:
    """The small one, with a longer PPO."""
    small = packaged_recipe("small")
    ppo = {**small.ppo, "updates": UPDATES, "samples_per_prompt": 2, "epochs": 2, "learning_rate": 0.001}
    services = {**small.services, "labeling": {"figures-interval-s": "0.5", "figures-recent-known": "40"}}
    return small.model_copy(update={"ppo": ppo, "sft": {**small.sft, "steps": 80}, "services": services})


class WithWitness(DemoFlow):
    """The demo, whose PPO has a witness: a reward model that learned from the held-out labels."""

    def _train_policy(self, files: Any, sft: ModelVersion, reward: ModelVersion) -> tuple[ModelVersion, ...]:
        config = {**self._recipe.reward_model, "base_model": str(sft), "output_family": "witness"}
        config["comparisons"] = f"labeling:{self._batch('held-out')}"
        self._train_once_more(config)
        self._recipe.ppo["guards"]["witness"] = {"model": "witness@latest"}
        return super()._train_policy(files, sft, reward)

    def _train_once_more(self, config: Any) -> None:
        run = self.trainer.start_run("reward_model", config)
        for _ in self.trainer.watch_run(run.run_id):
            pass


@contextmanager
def canary(store: Path, *, port: int, metrics_port: int) -> Iterator[PolicyClient]:
    """A second policy server, with the last policy."""
    command = [sys.executable, "-m", "services.policy", "--port", str(port), "--store", str(store)]
    command += ["--metrics-port", str(metrics_port), "--model", "policy@latest"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        with PolicyClient(f"127.0.0.1:{port}") as client:
            client.model_info(timeout_s=120, wait_for_ready=True)
            yield client
    finally:
        process.terminate()
        process.wait()


def label_with_known_items(labeling: LabelingClient) -> None:
    """Two people who agree mostly, beside items whose answer is known; then an import."""

    def tasks(word: str, count: int, **fields: Any) -> list[TaskDraft]:
        texts = CandidateRecord(text="good"), CandidateRecord(text="bad")
        return [TaskDraft(document=f"{word} {number}", candidates=texts, **fields) for number in range(count)]

    batch = BatchSettings(gold_share=0.5)
    labeling.submit_tasks(tasks("plain", 60, overlap=2), batch="known", batch_settings=batch)
    gold = tasks("gold", 90, purpose="gold", expected=((0,), (1,)))
    labeling.submit_tasks(gold, batch="known", batch_settings=batch)
    for labeler, errs_every in (("ann", 9), ("bob", 5)):
        answered = 0
        while leased := labeling.lease_tasks(labeler, max_tasks=10, batch="known"):
            answers = []
            for task in leased:
                answered += 1
                wanted = "bad" if answered % errs_every == 0 else "good"
                answers.append(
                    AnswerDraft(lease_id=task.lease_id, best_index=list(task.candidates).index(wanted))
                )
            labeling.submit_answers(labeler, answers)


def visit_site(target: str, token: str, site: str) -> None:
    """Somebody opens an account and looks around."""
    with AccessClient(target, token=token) as access:
        path = urlsplit(access.invite("researcher", lifetime_s=600.0).url).path
    with Person(base_url=site, follow_redirects=True, trust_env=False, timeout=30) as person:
        fields = {"name": "rita", "password": PASSWORD, "password_again": PASSWORD}
        person.submit(path, fields, page=path).raise_for_status()
        for page in ("/", "/cord", "/people"):
            person.get(page)


def test_every_panel_shows_a_real_run(tmp_path: Path) -> None:
    request = DemoRequest(out=tmp_path / "demo", seed=1, data=None, recipe=recipe())
    state, _ = open_state(request.out, {})
    with ExitStack() as stack:
        flow = WithWitness(request, state, Console(file=StringIO()))
        canary_ports = free_port(), free_port()
        scraped = {service: ports.metrics for service, ports in flow.supervisor.ports.items()}
        prometheus = stack.enter_context(
            Prometheus(tmp_path / "prometheus", scraped=scraped, canary_policy=canary_ports[1])
        )
        begin_s = time.time()
        stack.enter_context(flow)
        flow.run()
        trained_s = time.time()
        store = request.out / "home" / "store"
        token = flow.supervisor.tokens.admin
        labeling = stack.enter_context(LabelingClient(flow.supervisor.targets["labeling"], token=token))
        label_with_known_items(labeling)
        visit_site(flow.supervisor.targets["labeling"], token, site_url(flow.supervisor, {}))
        cord = stack.enter_context(CordClient(flow.supervisor.targets["labeling"], token=token))
        cord.pull(actor="rita", reason="to see it on the dashboard")
        _sample_with_both(flow, store, canary_ports, stack)
        cord.release(actor="rita", reason="seen")
        time.sleep(5)
        values = {
            "namespace": "andon",
            "job": ".+",
            "guard": "direction_scores|sampler_mismatch|kl_negative",
            "stable": f"127.0.0.1:{scraped['policy']}",
            "canary": f"127.0.0.1:{canary_ports[1]}",
            "__rate_interval": RATE_INTERVAL,
        }

        def query(expression: str, end_s: float | None = None) -> Sequence[Any]:
            filled = monitoring.fill_in(expression, values)
            found = prometheus.query_range(filled, start=begin_s, end=end_s or time.time(), step=1)
            return [series for series in found if any(value != "NaN" for _, value in series["values"])]

        lacking = [
            f"{name}: {panel['title']}: {target['expr']}"
            for name, dashboard in monitoring.dashboards().items()
            for panel in monitoring.panels(dashboard)
            for target in panel["targets"]
            if not query(target["expr"])
        ]
        assert lacking == []
        pictures = os.environ.get("ANDON_PICTURES")
        if pictures:
            for name, dashboard in monitoring.dashboards().items():
                until_s = trained_s if name == "training" else None
                draw(dashboard, partial(query, end_s=until_s), Path(pictures) / f"dashboard-{name}.png")


def _sample_with_both(flow: DemoFlow, store: Path, canary_ports: tuple[int, int], stack: ExitStack) -> None:
    """For a while nine calls in ten go to stable, one to the canary."""
    port, metrics_port = canary_ports
    client = stack.enter_context(canary(store, port=port, metrics_port=metrics_port))
    prompts = [post.document for post in (flow._corpus().test)[:4]]
    for number in range(200):
        chosen = client if number % 10 == 0 else flow.policy
        parameters = SamplingParameters(max_new_tokens=24, seed=number)
        samples = chosen.sample(prompts, parameters)
        if number % 20 == 0:
            flow.reward.score(
                [
                    (prompt, [result.samples[0].text or "nothing"])
                    for prompt, result in zip(prompts, samples.results, strict=True)
                ]
            )
        time.sleep(0.15)
