"""PPO: decides what happens in one update and in which order, from the prompts to the stored policy.

The run thread constructs ``PpoStage(config, context)`` and calls ``run``. Per update: sample with the current
version, ask reference and reward model, compute advantages, optimise, ask the guards, publish the next
version to every sampler, report. With ``max_staleness`` the batches of the next updates are sampled and
judged meanwhile (``rollouts_ahead``). Formulas stand in ``services.trainer.ppo``, the services are asked in
``rollout``, advantages come from ``ppo_experience``, gradients are taken in ``policy_optimizer`` (on all
ranks, see ``followers``; everything else happens on rank 0), guards are asked in ``ppo_guards``, versions are
named and stored in ``ppo_versions``. Left out on purpose: mixing in pretraining gradients, averaging weights.

Everything that is drawn depends on (seed, update) and the version that draws it alone, so a checkpoint after
update n, or between two optimizer steps of update n + 1, is all that a resumed run needs to give the numbers
of a run that was never cut off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from andon.client.policy import PolicyClient
from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.client.values import ModelInfo
from andon.errors import AndonError
from andon.modeling.manifest import Lineage, Parent
from andon.modeling.store import LocatedModel
from andon.modeling.text import TextCodec
from andon.modeling.versions import ModelVersion
from services.trainer.actor_critic import ActorCriticSource, load_actor_critic
from services.trainer.errors import InvalidConfigError, TokenizerMismatchError
from services.trainer.experience import Experience, RewardSettings
from services.trainer.followers import dismiss, enlist
from services.trainer.guards.witness_model import Witness
from services.trainer.peers import Peers
from services.trainer.policy_optimizer import OptimizerSettings, PolicyOptimizer, UpdateProgress
from services.trainer.ppo.kl import KlController
from services.trainer.ppo.schedules import learning_rate_factor
from services.trainer.ppo.stopping import PeriodRule
from services.trainer.prompts import load_prompts
from services.trainer.rollout import RolloutCollector, SamplingSettings
from services.trainer.rollouts_ahead import RolloutsAhead
from services.trainer.scorers import Scorers
from services.trainer.stages.context import StageContext, StageState
from services.trainer.stages.ppo_config import AdaptiveKlConfig, PpoConfig, make_controller, make_stop_rule
from services.trainer.stages.ppo_experience import ExperienceMaker
from services.trainer.stages.ppo_guards import PpoGuards
from services.trainer.stages.ppo_opinions import SecondOpinions, load_witness
from services.trainer.stages.ppo_preflight import PpoPreflight
from services.trainer.stages.ppo_versions import PolicyVersions
from services.trainer.weight_publisher import WeightPublisher


class PpoStage:
    """One PPO run."""

    def __init__(self, config: PpoConfig, context: StageContext) -> None:
        self._config = config
        self._context = context
        self._policy_clients, self._reference_client, self._reward_client = _required_clients(context)
        self._peers = Peers(context)
        self._timeout_s = context.clients.call_timeout_s
        self._update = 0  # updates done
        self._metrics: Mapping[str, float] = {}  # of the last update
        self._experience: Experience | None = None  # of an update in progress
        self._progress = UpdateProgress()
        self._seconds: dict[str, float] = {}  # by phase of the update in progress
        self._collector: RolloutCollector | None = None

    def run(self) -> ModelVersion:
        """Train to the end and return the stored policy."""
        context = self._context
        try:
            return self._run(context.restored_state())
        finally:
            self._peers.abandon()
            if self._collector is not None:
                self._collector.close()
            dismiss(context.ranks)

    def _run(self, restored: StageState | None) -> ModelVersion:
        config = self._config
        self._locate_models(restored)
        self._build(restored)
        if restored is not None and self._experience is None and self._versions.is_stored_after(self._update):
            # The process may have ended between the checkpoint and the store.
            self._versions.store(self._update, self._metrics)
        try:
            if self._update < config.num_updates:
                self._prepare_services()
            for update in range(self._update + 1, config.num_updates + 1):
                self._do_update(update)
        except AndonError as error:
            self._guards.not_finite(error, done=self._update)
            raise
        return self._versions.last

    # --- getting ready -------------------------------------------------------------------------------------

    def _locate_models(self, restored: StageState | None) -> None:
        """Names may move while a run stands still; a resumed run keeps to the versions it began with."""
        names = {
            "policy": self._config.policy,
            "reference": self._config.reference,
            "reward_model": self._config.reward_model,
        }
        if self._config.guards.witness.model is not None:
            names["witness"] = self._config.guards.witness.model
        if restored is not None:
            names = restored["models"]
        located = {role: self._context.store.locate(name) for role, name in names.items()}
        self._policy_model: LocatedModel = located["policy"]
        self._reference_model: LocatedModel = located["reference"]
        self._reward_model: LocatedModel = located["reward_model"]
        self._witness_model: LocatedModel | None = located.get("witness")

    def _build(self, restored: StageState | None) -> None:
        config, context = self._config, self._context
        self._codec = TextCodec.load(self._policy_model.source)
        self._prompts = load_prompts(config.prompts, self._codec)
        self._stop_rule = make_stop_rule(config.stop_rule, self._codec)
        source = ActorCriticSource(
            policy=self._policy_model.source,
            scorer=None if config.value_init == "shared_head" else self._reward_model.source,
        )
        self._actor_critic = load_actor_critic(source, device=context.device)
        settings = OptimizerSettings(
            epochs=config.epochs,
            minibatches=config.minibatches,
            token_budget=config.token_budget,
            temperature=config.temperature,
            clip_ratio=config.clip_ratio,
            clip_value=config.clip_value,
            value_coefficient=config.value_coefficient,
            learning_rate=config.learning_rate,
            value_learning_rate=config.value_learning_rate or config.learning_rate,
            adam_eps=config.adam_eps,
            max_grad_norm=config.max_grad_norm,
            seed=config.seed,
        )
        self._optimizer = PolicyOptimizer(self._actor_critic, settings, context.ranks)
        self._controller: KlController = make_controller(config.kl, beta=config.kl.beta)
        lineage = Lineage(
            parents=(
                Parent(role="base", model=self._policy_model.version),
                Parent(role="reference", model=self._reference_model.version),
                Parent(role="reward", model=self._reward_model.version),
            ),
            data=(self._prompts.use,),
        )
        self._reward_settings = RewardSettings(
            penalty=self._stop_rule.penalty,
            gamma=config.gamma,
            lam=config.lam,
            whiten_rewards=config.whiten_rewards,
            whiten_advantages=config.whiten_advantages,
        )
        self._publisher = WeightPublisher(
            self._policy_clients,
            initial=self._policy_model.version,
            peers=self._peers,
            timeout_s=self._timeout_s,
            threads=context.threads,
            on_sent=context.weights_sent,
        )
        self._versions = PolicyVersions(
            config,
            context,
            policy=self._actor_critic.policy,
            initial=self._policy_model,
            codec=self._codec,
            lineage=lineage,
            publisher=self._publisher,
        )
        self._scorers = Scorers(
            reference=self._reference_client,
            reference_model=self._reference_model.version,
            reward=self._reward_client,
            reward_model=self._reward_model.version,
            tokenizer_fingerprint=self._codec.fingerprint,
            peers=self._peers,
            timeout_s=self._timeout_s,
        )
        collector = self._collector = RolloutCollector(
            self._policy_clients,
            scorers=self._scorers,
            publisher=self._publisher,
            peers=self._peers,
            stop_rule=self._stop_rule,
            settings=SamplingSettings(
                parts=config.sample_parts,
                samples_per_prompt=config.samples_per_prompt,
                temperature=config.temperature,
                max_new_tokens=config.max_new_tokens,
                seed=config.seed,
                eos_token_id=self._codec.eos_token_id,
                tokenizer_fingerprint=self._codec.fingerprint,
                judged_with_eos=self._codec.eos_token_id if isinstance(self._stop_rule, PeriodRule) else None,
                timeout_s=self._timeout_s,
            ),
        )
        self._ahead = RolloutsAhead(
            collector,
            prompts_of=partial(self._prompts.of_update, batch=config.batch_prompts, seed=config.seed),
            updates_before=self._versions.updates_before,
            max_staleness=config.max_staleness,
            num_updates=config.num_updates,
            peers=self._peers,
        )
        self._maker = ExperienceMaker(
            self._actor_critic,
            ahead=self._ahead,
            collector=collector,
            peers=self._peers,
            settings=self._reward_settings,
            weight_limit=config.behaviour_weight_limit,
            temperature=config.temperature,
            token_budget=config.token_budget,
        )
        self._opinions = SecondOpinions(
            config.guards,
            context,
            codec=self._codec,
            prompts=self._prompts,
            collector=collector,
            witness=self._load_witness(),
            seed=config.seed,
        )
        preflight = PpoPreflight(
            config.guards,
            context,
            codec=self._codec,
            prompts=self._prompts,
            policy=self._actor_critic.policy,
            collector=collector,
            scorers=self._scorers,
            peers=self._peers,
            reward_settings=self._reward_settings,
            temperature=config.temperature,
            token_budget=config.token_budget,
        )
        self._guards = PpoGuards(
            config.guards,
            context,
            codec=self._codec,
            prompts=self._prompts,
            policy=self._actor_critic.policy,
            scorers=self._scorers,
            peers=self._peers,
            preflight=preflight,
            opinions=self._opinions,
            temperature=config.temperature,
            token_budget=config.token_budget,
            kl_target_nats=config.kl.target if isinstance(config.kl, AdaptiveKlConfig) else None,
        )
        if config.guards.when_cord_pulled == "stable":
            context.when_cord_holds(self._publisher.roll_back)
        if restored is not None:
            self._restore(restored)
        enlist(
            context.ranks,
            run_id=context.run_id,
            names=ActorCriticSource(
                policy=_name_of(self._policy_model),
                scorer=None if source.scorer is None else _name_of(self._reward_model),
            ),
            settings=settings,
            actor_critic=self._actor_critic,
            optimizer=self._optimizer,
        )

    def _load_witness(self) -> Witness | None:
        if self._witness_model is None:
            return None
        return load_witness(
            self._witness_model,
            reward_model=self._reward_model,
            codec=self._codec,
            prompts=self._prompts,
            batch_prompts=self._config.batch_prompts,
            max_new_tokens=self._config.max_new_tokens,
            token_budget=self._config.token_budget,
            device=self._context.device,
        )

    def _prepare_services(self) -> None:
        """Have all services use the right models and mean the same by a token id; then ask the guards."""
        calls: list[Callable[[], ModelInfo]] = [self._scorers.reference_ready, self._scorers.reward_ready]
        reference, reward = self._peers.together(calls, state=self._state)
        self._publisher.check_replicas(state=self._state)
        replicas = self._publisher.publish(state=self._state)
        longest = max(map(len, self._prompts.prompts)) + self._config.max_new_tokens
        named = [("reference", reference), ("reward model", reward), *(("policy", info) for info in replicas)]
        for name, info in named:
            if info.tokenizer_fingerprint != self._codec.fingerprint:
                raise TokenizerMismatchError(
                    peer=name, fingerprint=info.tokenizer_fingerprint, expected=self._codec.fingerprint
                )
            if longest > info.max_sequence_tokens:
                raise InvalidConfigError(
                    field="max_new_tokens",
                    problem=f"prompt and response reach {longest} tokens, the {name} takes "
                    f"{info.max_sequence_tokens}",
                )
        if self._experience is None:  # in the middle of an update they have looked at it already
            self._guards.preflight(
                step=self._update,
                beta=self._controller.beta,
                infos=dict(named),
                reference=self._reference_model,
                reward_model=self._reward_model,
                state=self._state,
            )

    # --- one update ----------------------------------------------------------------------------------------

    def _do_update(self, update: int) -> None:
        config, context = self._config, self._context
        if self._experience is None:
            context.obey(self._state)
        self._ahead.begin(update, has_experience=self._experience is not None)
        if self._experience is None:
            self._seconds = {}
            self._progress = UpdateProgress()
            self._experience = self._maker.make(
                update, beta=self._controller.beta, timed=self._timed, state=self._state
            )
            self._ahead.learned(update)
            with self._timed("guard_seconds"):
                self._guards.before_update(self._experience)
        context.obey(self._state)  # also before the first step of an update that is taken up in its middle
        experience = self._experience
        rate_factor = learning_rate_factor(update - 1, config.num_updates, kind=config.schedule)
        with self._timed("optimise_seconds"):
            self._optimizer.update(
                experience,
                update=update,
                learning_rate_factor=rate_factor,
                progress=self._progress,
                between_steps=lambda: context.obey(self._state),
            )
        with self._timed("sample_seconds"):
            self._ahead.wait_until_written(state=self._state)
        reported = {**experience.metrics, **self._progress.metrics()}
        with self._timed("publish_seconds"):
            prepared = self._versions.prepare(update)
        with self._timed("guard_seconds"):
            self._guards.after_update(
                experience,
                update=update,
                metrics=reported,
                written_ahead=self._ahead.written_by(self._publisher.current),
                as_published=self._versions.as_published,
                state=self._state,
                keep_last_good=self._keep_last_good,
            )
        with self._timed("publish_seconds"):
            version = self._publisher.set_current(prepared)
            self._publisher.publish(state=self._state)
        context.published(version, stored=False)

        self._controller = self._controller.after(
            kl_nats=experience.kl_nats, num_episodes=len(experience.rollout.scores)
        )
        self._metrics = {
            **self._guards.with_sampler_errors(reported, staleness=experience.staleness),
            **self._opinions.metrics,
            "learning_rate": config.learning_rate * rate_factor,
            "policy_version": float(version.version),
            **self._seconds,
            "update_seconds": sum(self._seconds.values()),
        }
        self._update, self._experience = update, None
        stores_now = self._versions.is_stored_after(update)
        # Saved before it is stored: a run that is cut off in between stores the same weights, not new ones.
        context.step_done(
            step=update,
            total=config.num_updates,
            phase="update",
            metrics=self._metrics,
            state=self._state,
            checkpoint=stores_now,
        )
        if stores_now:
            self._versions.store(update, self._metrics)

    def _keep_last_good(self) -> None:
        """An alarm keeps the new weights back; what the samplers serve is stored."""
        self._publisher.withdraw()
        self._versions.store_last_good(self._update, self._metrics)

    # --- checkpoints and versions --------------------------------------------------------------------------

    def _state(self) -> StageState:
        progress = None
        if self._experience is not None:
            progress = {
                "experience": self._experience.to_state(),
                "progress": self._progress.to_state(),
                "seconds": dict(self._seconds),
                # What the samplers serve meanwhile; between updates it is the policy itself.
                "published": self._publisher.published_weights,
            }
        return {
            "update": self._update,
            "models": {
                "policy": _name_of(self._policy_model),
                "reference": _name_of(self._reference_model),
                "reward_model": _name_of(self._reward_model),
                **({} if self._witness_model is None else {"witness": _name_of(self._witness_model)}),
            },
            "actor_critic": self._actor_critic.state(),
            "optimizer": self._optimizer.state(),
            "beta": self._controller.beta,
            "guards": self._guards.state(),
            "metrics": dict(self._metrics),
            "ahead": self._ahead.state(),
            "in_progress": progress,
        }

    def _restore(self, restored: StageState) -> None:
        self._update = restored["update"]
        self._metrics = restored["metrics"]
        self._actor_critic.restore(restored["actor_critic"])
        self._optimizer.restore(restored["optimizer"])
        self._controller = make_controller(self._config.kl, beta=restored["beta"])
        self._guards.restore(restored["guards"])
        self._ahead.restore(restored["ahead"])
        in_progress = restored["in_progress"]
        if in_progress is not None:
            self._experience = Experience.from_state(in_progress["experience"])
            self._progress = UpdateProgress(**in_progress["progress"])
            self._seconds = in_progress["seconds"]
        if self._update > 0:
            published = None if in_progress is None else in_progress["published"]
            self._publisher.set_current(self._versions.prepare(self._update, published))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - started_s


def _required_clients(
    context: StageContext,
) -> tuple[tuple[PolicyClient, ...], ReferenceClient, RewardClient]:
    clients = context.clients
    if not clients.policy or clients.reference is None or clients.reward is None:
        raise InvalidConfigError(
            field="(whole)",
            problem="PPO needs a policy, a reference and a reward service; name their targets",
        )
    return clients.policy, clients.reference, clients.reward


def _name_of(model: LocatedModel) -> str:
    """What the model store finds this very version by."""
    return model.source if model.stored is None else str(model.version)
