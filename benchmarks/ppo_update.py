"""Ours: episodes per second of PPO updates, all services included.

The stage runs here, as in the trainer; policy, reference and reward service are processes of their own, asked
over gRPC. The CPU seconds of all four are counted: sampling, log-probabilities, scores, values, epochs, and
the new weights' way to the sampler. With ``--memory`` it is the most that they hold, all together, above
their models' weights.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel

from andon.client.policy import PolicyClient
from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.modeling.linear import KERNELS_OF_TRAINING, keep_kernels
from andon.modeling.loading import save_model
from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec
from benchmarks import shapes
from benchmarks.flops import (
    WITH_GRADIENTS,
    Need,
    TreeSizes,
    flops_only,
    logprob_flops,
    sampling_needs,
    score_flops,
    value_flops,
)
from benchmarks.measuring import cpu_seconds_of_process, emit, emit_rate, parser, use_threads
from benchmarks.memory import peak_bytes, reset_peak, resident_bytes, settle
from benchmarks.shapes import Shape
from benchmarks.stage_run import TimedRun
from services.trainer.stages.context import RunStopped, StageClients
from services.trainer.stages.ppo import PpoStage
from services.trainer.stages.ppo_config import EosRuleConfig, PpoConfig

TRAINER = "trainer"
SERVED_MODELS = {"policy": "sft/1", "reference": "sft/1", "reward": "reward/1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceProcess:
    """A service that is ready to answer."""

    process: subprocess.Popen[str]
    target: str


@contextmanager
def service_process(name: str, store: Path, threads: int, *flags: str) -> Iterator[ServiceProcess]:
    """Start a service as an operator does, on a free port; end it afterwards."""
    log = store.parent / f"{name}.log"
    command = [
        *(sys.executable, "-m", f"services.{name}", "--port=0", "--metrics-port=0"),
        *(f"--store={store}", f"--model={SERVED_MODELS[name]}", f"--threads={threads}"),
        *flags,
    ]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith("ANDON_READY "):
                raise SystemExit(f"the {name} service did not start:\n{log.read_text()[-2000:]}")
            port = json.loads(line.removeprefix("ANDON_READY "))["port"]
            yield ServiceProcess(process=process, target=f"127.0.0.1:{port}")
        finally:
            process.terminate()


def publish_models(store: ModelStore, shape: Shape, codec: TextCodec) -> None:
    """One random language model and one random reward model."""

    def publish(family: str, model: PreTrainedModel, manifest: ManifestDraft) -> None:
        store.publish(family, lambda folder: save_model(model, codec, folder), manifest=manifest)

    publish("sft", shapes.causal_lm(shape, codec), ManifestDraft(kind="causal_lm"))
    publish("reward", shapes.scorer(shape, codec), ManifestDraft(kind="reward_model"))


def draw_prompts(episodes: int, samples: int, shortest: int, longest: int, shape: Shape) -> list[list[int]]:
    """The words of one update's documents, as the peer draws them.

    Of several samples per prompt there are fewer prompts, with the same spread of lengths.
    """
    drawn = shapes.prompts(episodes, shortest, longest, shape, seed=0)
    return drawn if samples == 1 else sorted(drawn, key=len)[samples // 2 :: samples]


def write_prompts(path: Path, drawn: Sequence[list[int]]) -> None:
    """Each update has the same documents, in another order. The codec's template adds one token to each."""
    lines = [
        json.dumps({"id": str(number), "document": shapes.text(words[:-1])})
        for number, words in enumerate(drawn)
    ]
    path.write_text("\n".join(lines) + "\n")


def needs_of_update(shape: Shape, trees: Sequence[TreeSizes], *, epochs: int) -> list[Need]:
    """Sampling, the three frozen passes, and both networks' passes with gradients in every epoch."""
    learned = epochs * WITH_GRADIENTS * (logprob_flops(shape, trees) + value_flops(shape, trees))
    judged = logprob_flops(shape, trees) + score_flops(shape, trees) + value_flops(shape, trees)
    return [*sampling_needs(shape, trees), *flops_only(judged + learned)]


class Holdings:
    """What this process and the services hold above their models' weights."""

    def __init__(self, store: ModelStore, services: Mapping[str, ServiceProcess]) -> None:
        """Before the stage has loaded anything; the services have their models."""
        self._processes = {TRAINER: os.getpid(), **{name: s.process.pid for name, s in services.items()}}
        settle()
        self._before = {name: resident_bytes(process) for name, process in self._processes.items()}
        # The policy, and a value network that begins as the reward model.
        self._before[TRAINER] += sum(path.stat().st_size for path in store.root.glob("*/*/*.safetensors"))
        for process in self._processes.values():
            reset_peak(process)

    def most(self) -> Mapping[str, int]:
        """Bytes by process."""
        return {name: peak_bytes(pid) - self._before[name] for name, pid in self._processes.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    flags = parser(__doc__)
    flags.add_argument("--batch", type=int, default=64, help="episodes")
    flags.add_argument("--samples", type=int, default=1, help="per prompt")
    flags.add_argument("--epochs", type=int, default=4)
    flags.add_argument("--minibatches", type=int, default=1)
    flags.add_argument("--shortest", type=int, default=120)
    flags.add_argument("--longest", type=int, default=280)
    flags.add_argument("--new", type=int, default=48)
    flags.add_argument("--token-budget", type=int, default=PpoConfig.model_fields["token_budget"].default)
    flags.add_argument("--memory", action="store_true", help="measure memory of one update instead of time")
    flags.add_argument("--max-staleness", type=int, default=0, help="updates that are sampled ahead")
    flags.add_argument("--sample-parts", type=int, default=1, help="parts that are judged as they come")
    flags.set_defaults(repetitions=1)
    arguments = flags.parse_args(argv)
    use_threads(arguments.threads)
    keep_kernels(KERNELS_OF_TRAINING)
    shape = shapes.SHAPES[arguments.shape]
    codec = shapes.codec(shape)
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        store = ModelStore(folder / "store")
        publish_models(store, shape, codec)
        prompts = folder / "prompts.jsonl"
        drawn = draw_prompts(arguments.batch, arguments.samples, arguments.shortest, arguments.longest, shape)
        write_prompts(prompts, drawn)
        services = {
            service: stack.enter_context(service_process(service, store.root, arguments.threads))
            for service in SERVED_MODELS
        }
        clients = StageClients(
            policy=(stack.enter_context(PolicyClient(services["policy"].target)),),
            reference=stack.enter_context(ReferenceClient(services["reference"].target)),
            reward=stack.enter_context(RewardClient(services["reward"].target)),
        )

        def cpu_seconds() -> Mapping[str, float]:
            of_services = {
                service: cpu_seconds_of_process(running.process.pid) for service, running in services.items()
            }
            return {TRAINER: time.process_time(), **of_services}

        context = TimedRun(
            store=store,
            clients=clients,
            threads=arguments.threads,
            num_steps=0 if arguments.memory else arguments.repetitions,
            clock=lambda: (time.perf_counter(), cpu_seconds()),
        )
        config = PpoConfig(
            prompts=str(prompts),
            policy="sft/1",
            reference="sft/1",
            reward_model="reward/1",
            updates=1 + arguments.repetitions + arguments.max_staleness,  # also the last one timed samples
            batch_prompts=len(drawn),
            samples_per_prompt=arguments.samples,
            minibatches=arguments.minibatches,
            epochs=arguments.epochs,
            learning_rate=1e-5,
            temperature=0.7,
            max_new_tokens=arguments.new,
            stop_rule=EosRuleConfig(missing_penalty=0.0),  # nothing ends with the token here
            max_grad_norm=None,  # the peer does not clip
            token_budget=arguments.token_budget,
            max_staleness=arguments.max_staleness,
            sample_parts=arguments.sample_parts,
        )
        holdings = Holdings(store, services)
        with suppress(RunStopped):
            PpoStage(config, context).run()
        if arguments.memory:
            held = holdings.most()
            emit(
                bench="andon_ppo_memory",
                over_weights_bytes=sum(held.values()),
                over_weights_bytes_by_process=held,
            )
            return
    used = [{part: end[part] - begin[part] for part in end} for (_, begin), (_, end) in context.steps]
    wall_s = [end_s - begin_s for (begin_s, _), (end_s, _) in context.steps]
    seconds = statistics.median(sum(parts.values()) for parts in used)
    trees = [TreeSizes(prompt=len(words), responses=[arguments.new] * arguments.samples) for words in drawn]
    emit_rate(
        bench="andon_ppo_update",
        count=len(drawn) * arguments.samples,
        cpu_s=seconds,
        needs=needs_of_update(shape, trees, epochs=arguments.epochs),
        wall_s=round(statistics.median(wall_s), 3),
        wall_s_of_each=[round(value, 3) for value in wall_s],
        cpu_s_by_process={
            part: round(statistics.median(parts[part] for parts in used), 3) for part in used[0]
        },
        wall_s_by_phase={
            phase: round(statistics.median(step[phase] for step in context.metrics), 3)
            for phase in context.metrics[0]
            if phase.endswith("_seconds")
        },
        sampler_logprob_max_error=context.metrics[0]["sampler_logprob_max_error"],
    )


if __name__ == "__main__":
    main()
