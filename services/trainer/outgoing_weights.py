"""What one version's weights are to samplers: in which types, and as a difference to the version before.

``weight_publisher`` makes one for every update. Each form is made once, when it is first asked for or ahead
of that in a thread of its own, and serves all replicas. Two versions' images are enough: the memory of the
one before the last is filled again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor

from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import weights_sha256
from andon.modeling.weight_delta import encode_delta
from andon.modeling.weight_image import WeightImage, image_of


class OutgoingWeights:
    """A copy of weights, made when it is first needed, and what is sent of it. Threads may share it."""

    def __init__(
        self,
        family: str,
        number: int,
        weights: Mapping[str, Tensor],
        *,
        base: OutgoingWeights | None,
        room: Sequence[WeightImage],
        threads: int,
    ) -> None:
        """``weights`` must be of one type, and stay as they are until ``settle`` or ``version`` has returned.
        ``family`` and ``number`` name the version, ``base`` is the one before, ``room`` memory that nobody
        reads any more; ``threads`` work on a delta.
        """
        self._family, self._number = family, number
        self._base = base
        self._base_version = None if base is None else base.version
        self._room = list(room)
        self._threads = threads
        self._weights = weights  # empty once they are copied
        self._lock = threading.Lock()  # guards the forms below
        self._digest_lock = threading.Lock()
        self._master: WeightImage | None = None
        self._images: dict[str, WeightImage] = {}
        self._deltas: dict[str, bytes | None] = {}

    def settle(self) -> None:
        """Have the weights copied, if they are not yet."""
        with self._lock:
            self._copy()

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The copy, in the trainer's own type."""
        with self._lock:
            return self._copy().tensors

    @property
    def version(self) -> ModelVersion:
        """Its name, with the digest over the weights in the trainer's own type."""
        with self._digest_lock:
            return self._version

    @cached_property
    def _version(self) -> ModelVersion:
        return ModelVersion(self._family, self._number, weights_sha256(self.tensors))

    @property
    def base_version(self) -> ModelVersion | None:
        """What deltas are to; None where there can be none."""
        return self._base_version

    def image(self, dtype: str) -> WeightImage:
        """All weights in the type that a sampler serves, with their checksum."""
        with self._lock:
            image = self._image(dtype)
            image.checksum()
            return image

    def delta(self, dtype: str) -> bytes | None:
        """What turns the version before into this one; None where it is gone, or all weights are shorter.

        It makes the image too, whose checksum a delta's header names.
        """
        self.image(dtype)
        with self._lock:
            if dtype not in self._deltas:
                self._deltas[dtype] = self._encoded(dtype)
            return self._deltas[dtype]

    def made_image(self, dtype: str) -> WeightImage | None:
        """The image of this type if samplers were given one."""
        with self._lock:
            return self._images.get(dtype)

    def release_base(self) -> list[WeightImage]:
        """Forget the version before and return its memory; deltas that are made already stay."""
        with self._lock:
            base, self._base = self._base, None
        return [] if base is None else base._give_up()

    def _give_up(self) -> list[WeightImage]:
        with self._lock:
            images, self._images = list(self._images.values()), {}
        return images

    def _encoded(self, dtype: str) -> bytes | None:
        old = None if self._base is None else self._base.made_image(dtype)
        if old is None:
            return None
        new = self._image(dtype)
        delta = encode_delta(old, new, threads=self._threads)
        return delta if len(delta) < new.size_bytes else None

    def _copy(self) -> WeightImage:
        if self._master is None:
            self._master = self._filled(self._weights, None)
            self._images[self._master.dtype] = self._master
            self._weights = {}
        return self._master

    def _image(self, dtype: str) -> WeightImage:
        master = self._copy()
        if dtype not in self._images:
            self._images[dtype] = self._filled(master.tensors, dtype)
        return self._images[dtype]

    def _filled(self, weights: Mapping[str, Tensor], dtype: str | None) -> WeightImage:
        own = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        for number, image in enumerate(self._room):
            if image.dtype == (dtype or own) and image.fits(weights):
                return self._room.pop(number).fill(weights)
        return image_of(weights, dtype)
