"""Decides which model a server is taken to serve, and what is known of it without its weights.

The tokenizer, the template and the limits come from the files of ``backend_model``; that the server has the
weights of those files is its own word, by the name it serves them under.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from andon.modeling.loading import ModelDescription, load_config
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec
from andon.modeling.versions import ModelVersion
from andon.rpc.sequences import SequenceLimits
from services.policy.backends.inference_server import ServerModel
from services.policy.errors import (
    BackendServesOtherModelError,
    NotALanguageModelError,
    UnsupportedByBackendError,
)

REMOTE_DEVICE = "remote"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedModel:
    """What a server is to serve, read from the store, a folder or Hugging Face."""

    version: ModelVersion  # of the store; version 0 for a model from outside
    source: str
    codec: TextCodec
    architecture: str
    vocab_size: int
    max_sequence_tokens: int | None

    @classmethod
    def load(cls, name: str, *, store: ModelStore) -> ExpectedModel:
        """Read tokenizer and configuration, no weights.

        Raises the store's and the loader's errors, NotALanguageModelError.
        """
        located = store.locate(name, weights=False)
        if located.stored is not None and located.stored.manifest.draft.kind != "causal_lm":
            raise NotALanguageModelError(model=str(located.version), kind=located.stored.manifest.draft.kind)
        codec = TextCodec.load(located.source)
        config = load_config(located.source)
        codec.decode(
            codec.encode_document("first use")
        )  # sets the tokenizer's options before threads share it
        architectures = config.architectures or [""]
        return cls(
            version=located.version,
            source=located.source,
            codec=codec,
            architecture=architectures[0],
            vocab_size=config.vocab_size,
            max_sequence_tokens=getattr(config, "max_position_embeddings", None),
        )

    def find_in(self, models: Sequence[ServerModel], *, backend: str) -> ServerModel:
        """The one of a server's models that is this one. Raises BackendServesOtherModelError."""
        for model in models:
            if any(self._is_name(name) for name in model.names):
                return model
        raise BackendServesOtherModelError(
            backend=backend,
            expected=str(self.version) if self.version.version else self.source,
            serves=", ".join(" at ".join(model.names) for model in models) or "nothing",
        )

    def _is_name(self, name: str) -> bool:
        """A version of the store goes by its name, or by a path that ends as the store's does."""
        if self.version.version == 0:
            return name == self.source
        parts = PurePosixPath(name).parts
        return name == str(self.version) or parts[-2:] == PurePosixPath(self.source).parts[-2:]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """A model that a server serves, as requests are checked against it."""

    version: ModelVersion
    codec: TextCodec
    facts: ModelDescription
    load_time: datetime
    max_prompt_tokens: int | None

    @classmethod
    def of(cls, expected: ExpectedModel, served: ServerModel, *, backend: str) -> RemoteModel:
        """Put together what the files and the server say.

        Raises UnsupportedByBackendError when neither says how long a sequence may be.
        """
        version = expected.version
        if version.version == 0 and served.revision:
            version = ModelVersion(f"{version.family}@{served.revision}", 0)
        said = (expected.max_sequence_tokens, served.max_sequence_tokens)
        longest = [tokens for tokens in said if tokens is not None]
        if not longest:
            raise UnsupportedByBackendError(
                backend=backend, problem="neither it nor the model's configuration names a longest sequence"
            )
        return cls(
            version=version,
            codec=expected.codec,
            facts=ModelDescription(
                architecture=expected.architecture,
                parameter_count=0,
                vocab_size=expected.vocab_size,
                max_sequence_tokens=min(longest),
                dtype=served.dtype,
                device=REMOTE_DEVICE,
            ),
            load_time=datetime.now(UTC),
            max_prompt_tokens=served.max_prompt_tokens,
        )

    @property
    def limits(self) -> SequenceLimits:
        """What a request may contain."""
        return SequenceLimits(
            vocab_size=self.facts.vocab_size, max_sequence_tokens=self.facts.max_sequence_tokens
        )
