"""Decides the order of the demo: from documents to a policy that has been measured, all through the services.

documents -> services up -> supervised fine-tuning -> samples -> simulated labelers -> reward model -> PPO ->
measurements -> report. Each phase is timed and its result remembered (``demo_state``), so a demo that was cut
off goes on at the phase it had reached, and a training run inside a phase goes on at its checkpoint. What a
phase needs of a service that dies in the meantime is asked again until it has been started anew: by the
demo's own supervisor, or by whoever runs the services that the demo was given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from andon.cli.demo_corpus import DemoCorpus, builtin_corpus, corpus_of_documents
from andon.cli.demo_services import DemoServices, OwnServices
from andon.cli.demo_state import DemoState
from andon.cli.demo_tasks import build_tasks
from andon.cli.measurements import Measuring
from andon.cli.recipes import Recipe
from andon.cli.run_view import RunView, show_run
from andon.cli.simulated_labelers import label_batch, patiently
from andon.cli.supervisor import ChildEvent, Supervisor, free_ports
from andon.client.labeling import LabelingClient
from andon.client.policy import PolicyClient, PromptSamples, SamplingParameters
from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.client.trainer import ModelPublished, Run, RunEvent, RunState, Stage, TrainerClient
from andon.client.trainer import Progress as RunProgress
from andon.corpus.records import ComparisonRecord, DocumentRecord
from andon.errors import FailedPreconditionError
from andon.modeling.versions import ModelVersion

# How long a service that was killed may take to come back before the demo gives up: on a machine with other
# work to do, starting a process that needs torch takes minutes.
PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRequest:
    """What a person asked for."""

    out: Path
    seed: int
    data: str | None  # None: the built-in corpus
    recipe: Recipe
    store: str | None = None  # None: a folder in the demo's home


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCurve:
    """A training stage's metrics by step; steps repeated after an interruption count once."""

    stage: Stage
    steps: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoModels:
    """What the demo trained."""

    sft: ModelVersion
    reward: ModelVersion
    policy: ModelVersion
    policies_on_the_way: tuple[ModelVersion, ...]  # stored during PPO, in order, the last one included


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOutcome:
    """What the measuring phase needs and the report tells."""

    corpus: DemoCorpus
    models: DemoModels
    held_out: tuple[ComparisonRecord, ...]  # comparisons that the reward model never saw
    curves: tuple[StageCurve, ...]


class DemoFlow:
    """One demo. Use it as a context manager: leaving it stops the services that it started."""

    def __init__(
        self,
        request: DemoRequest,
        state: DemoState,
        console: Console,
        *,
        services: DemoServices | None = None,
    ) -> None:
        """``services`` run already; without them the demo starts its own."""
        self.request = request
        self.state = state
        self._console = console
        self._recipe = request.recipe
        self._stack = ExitStack()
        self._curves: dict[Stage, StageCurve] = {}
        self._stored: dict[Stage, tuple[ModelVersion, ...]] = {}
        self.services: DemoServices = services or OwnServices(
            Supervisor(
                request.out / "home",
                store=request.store,
                ports=free_ports(),
                arguments=_arguments(self._recipe),
                on_event=self._tell,
            )
        )

    def __enter__(self) -> DemoFlow:
        self._stack.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:  # what every context manager is given
        self._stack.__exit__(*exception)

    @property
    def supervisor(self) -> Supervisor:
        """That of the demo's own services. Raises RuntimeError where the demo uses others'."""
        if not isinstance(self.services, OwnServices):
            raise RuntimeError("the demo did not start these services")
        return self.services.supervisor

    def run(self) -> DemoOutcome:
        """Everything up to the measurements."""
        with self.phase("corpus"):
            corpus = self._corpus()
            files = corpus.write(self.request.out / "corpus")
        with self.phase("services"):
            self.services.start()
            self._stack.callback(self.services.stop)
            self._connect()
        with self.phase("sft"):
            sft = self._train_sft(files)
            self._serve("policy", sft)
            self._serve("reference", sft)
        with self.phase("samples"):
            labeling = self._recipe.labeling
            self._submit(corpus, corpus.labeled, sft, "labels", overlap=labeling.overlap, with_edits=True)
            # Held out are comparisons of what policies write; the edits have a test of their own.
            self._submit(
                corpus,
                corpus.reward_test,
                sft,
                "held-out",
                overlap=labeling.test_overlap,
                with_edits=False,
            )
        with self.phase("labels"):
            self._label(corpus, self._batch("labels"))
            self._label(corpus, self._batch("held-out"))
        with self.phase("reward_model"):
            reward = self._train_reward_model(files, sft)
            self._serve("reward", reward)
        with self.phase("ppo"):
            policies = self._train_policy(files, sft, reward)
        held_out = tuple(self.labeling.export_comparisons(batch=self._batch("held-out")))
        return DemoOutcome(
            corpus=corpus,
            models=DemoModels(sft=sft, reward=reward, policy=policies[-1], policies_on_the_way=policies),
            held_out=held_out,
            curves=tuple(self._curves.values()),
        )

    def measuring(self, models: DemoModels) -> Measuring:
        """The services with the models that are to be measured."""
        return Measuring(
            policy=self.policy,
            reference=self.reference,
            reward=self.reward,
            reference_model=models.sft,
            reward_model=models.reward,
        )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase and says how long it took. Time of an interrupted attempt counts too."""
        before_s = self.state.seconds.get(name, 0.0)
        started_s = time.monotonic()
        try:
            yield
        finally:
            self.state.seconds[name] = round(before_s + time.monotonic() - started_s, 3)
            self.state.save()
        self._console.print(f"[green]✓[/] {name:<14} {self.state.seconds[name]:7.1f} s", highlight=False)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar that is called with how much more is done."""
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,  # a bar in a file is only noise
        ) as progress:
            task = progress.add_task(title, total=total)
            yield lambda count: progress.advance(task, count)

    def _corpus(self) -> DemoCorpus:
        sizes = self._recipe.corpus
        if self.request.data is None:
            return builtin_corpus(sizes, seed=self.request.seed)
        return corpus_of_documents(self.request.data, sizes)

    def _connect(self) -> None:
        targets = self.services.targets
        self.policy = self._stack.enter_context(PolicyClient(targets["policy"]))
        self.reference = self._stack.enter_context(ReferenceClient(targets["reference"]))
        self.reward = self._stack.enter_context(RewardClient(targets["reward"]))
        self.labeling = self._stack.enter_context(
            LabelingClient(targets["labeling"], token=self.services.labeling_token)
        )
        self.trainer = self._stack.enter_context(TrainerClient(targets["trainer"]))

    def _train_sft(self, files: Mapping[str, Path]) -> ModelVersion:
        config = {
            "seed": self.request.seed,
            **self._recipe.sft,
            "data": str(files["sft"].absolute()),
            "validation_data": str(files["validation"].absolute()),
        }
        return self._model_of(self._train("sft", config))

    def _train_reward_model(self, files: Mapping[str, Path], sft: ModelVersion) -> ModelVersion:
        config = {
            "seed": self.request.seed,
            "references": str(files["validation"].absolute()),
            **self._recipe.reward_model,
            "base_model": str(sft),
            "comparisons": f"labeling:{self._batch('labels')}",
        }
        detection = self._recipe.reward_model.get("token_detection")
        if detection is not None:
            config["token_detection"] = {"data": str(files["sft"].absolute()), **detection}
        return self._model_of(self._train("reward_model", config))

    def _train_policy(
        self, files: Mapping[str, Path], sft: ModelVersion, reward: ModelVersion
    ) -> tuple[ModelVersion, ...]:
        config = {
            "seed": self.request.seed,
            **self._recipe.ppo,
            "prompts": str(files["prompts"].absolute()),
            "policy": str(sft),
            "reference": str(sft),
            "reward_model": str(reward),
        }
        # The reward model never saw these: before the first update it must rank them as people did.
        guards = config.get("guards", {})
        held_out = {"comparisons": f"labeling:{self._batch('held-out')}"}
        config["guards"] = {**guards, "preflight": {**held_out, **guards.get("preflight", {})}}
        run = self._train("ppo", config)
        last = self._model_of(run)
        earlier = (version for version in self._stored["ppo"] if not version.is_same_name(last))
        return (*earlier, last)

    def _train(self, stage: Stage, config: Mapping[str, Any]) -> Run:
        """Starts the run, or takes it up again where it was left, and watches it to its end."""
        started = patiently(
            lambda: self.trainer.start_run(
                stage, config, request_id=f"{self.state.demo_id}-{stage}", wait_for_ready=True
            )
        )
        run_id = started.run_id
        if started.state in (RunState.FAILED, RunState.INTERRUPTED, RunState.PAUSED):
            self.trainer.resume(run_id)
        steps: dict[int, Mapping[str, float]] = {}
        stored: list[ModelVersion] = []

        def note(event: RunEvent) -> None:
            if isinstance(event.event, RunProgress):
                steps[event.event.step] = {**steps.get(event.event.step, {}), **event.event.metrics}
            elif isinstance(event.event, ModelPublished) and event.event.stored:
                stored.append(event.event.model)

        # From the first event on, also of a run that is taken up again: its curves are wanted whole.
        show_run(
            self.trainer.watch_run(run_id, reconnect_s=PATIENCE_S),
            RunView(stage=stage, run_id=run_id),
            self._console,
            on_event=note,
        )
        self._curves[stage] = StageCurve(stage=stage, steps=dict(sorted(steps.items())))
        self._stored[stage] = tuple(stored)
        ended = patiently(lambda: self.trainer.get(run_id, wait_for_ready=True))
        if ended.state is not RunState.SUCCEEDED:
            raise FailedPreconditionError(
                f"the {stage} run {run_id} has {ended.state.value}: {ended.status_message} "
                f"(log: {self.services.trainer_log}); the same command takes it up again",
                reason="RUN_FAILED",
                run_id=run_id,
            )
        return ended

    def _model_of(self, run: Run) -> ModelVersion:
        if run.output_model is None:
            raise FailedPreconditionError(f"run {run.run_id} wrote no model", reason="RUN_FAILED")
        return run.output_model

    def _serve(self, service: str, model: ModelVersion) -> None:
        """Has a service use a model now, and again whenever it is started anew."""
        self.services.keep_model(service, str(model))
        load: Mapping[str, Callable[..., object]] = {
            "policy": self.policy.load_model,
            "reference": self.reference.load_model,
            "reward": self.reward.load_model,
        }
        patiently(partial(load[service], str(model), wait_for_ready=True))

    def _submit(
        self,
        corpus: DemoCorpus,
        documents: tuple[DocumentRecord, ...],
        sft: ModelVersion,
        name: str,
        *,
        overlap: int,
        with_edits: bool,
    ) -> None:
        """Samples candidates and hands them in, once: a batch that is there already is left alone."""
        batch = self._batch(name)
        if self.state.results.get(f"submitted {batch}"):
            return
        labeling = self._recipe.labeling
        samples: list[PromptSamples] = [PromptSamples(prompt_token_ids=(), samples=()) for _ in documents]
        if labeling.samples:
            parameters = SamplingParameters(
                max_new_tokens=self._recipe.evaluation.max_new_tokens,
                samples_per_prompt=labeling.samples,
                temperature=labeling.temperature,
                seed=self.request.seed,
            )
            with self.bar("sampling", len(documents)) as advance:
                answers = self._sampling(sft).sample(
                    sft, [record.document for record in documents], parameters, advance
                )
            samples = [result for answer in answers for result in answer.results]
        tasks = build_tasks(
            corpus,
            documents,
            samples,
            labeling,
            overlap=overlap,
            seed=self.request.seed,
            with_edits=with_edits,
        )
        request_id = f"{self.state.demo_id}-{batch}"
        patiently(
            lambda: self.labeling.submit_tasks(tasks, batch=batch, request_id=request_id, wait_for_ready=True)
        )
        self.state.results[f"submitted {batch}"] = str(len(tasks))
        self.state.save()

    def _sampling(self, sft: ModelVersion) -> Measuring:
        return Measuring(
            policy=self.policy,
            reference=self.reference,
            reward=self.reward,
            reference_model=sft,
            reward_model=sft,
        )

    def _label(self, corpus: DemoCorpus, batch: str) -> None:
        before = patiently(lambda: self.labeling.progress(batch=batch, wait_for_ready=True))
        with self.bar("labeling", before.slot_count - before.answer_count) as advance:
            label_batch(
                self.services.targets["labeling"],
                batch,
                corpus.opinions,
                token=self.services.labeling_token,
                labelers=self._recipe.labeling.labelers,
                mode=self._recipe.labeling.mode,
                on_answers=advance,
            )

    def _batch(self, name: str) -> str:
        return f"{self.state.demo_id}-{name}"

    def _tell(self, event: ChildEvent) -> None:
        self._console.print(f"[yellow]! {event.service}[/] {event.message}", highlight=False)


def _arguments(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Flags of the services: the recipe's, and as much patience in the trainer as the demo has."""
    arguments = {service: dict(flags) for service, flags in recipe.services.items()}
    arguments.setdefault("trainer", {}).setdefault("peer-patience-s", str(PATIENCE_S))
    return arguments
