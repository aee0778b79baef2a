"""Ours and what one would do instead: new weights from a trainer's memory into a sampler's model.

Each round takes one step of Adam at 3e-6 on random tokens, so that what changes is what a step changes, and
then hands the weights over by every way in turn. Samplers are processes of their own; ours is a policy
service. Time is taken on the clock, since both sides do nothing but wait, and in CPU seconds of both, which
are nearly the same on a quiet machine and bear company on another; the rate is per CPU second. ``whole``
hides nothing. ``waiting`` is what a PPO update waits for: that other threads are given the weights, and all
from where the trainer's guards have looked. Meanwhile the trainer copies the weights and makes digest, image
and delta, and the replica takes and checks what it is offered. For the peers both are the same. The first
round is a warm-up.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from andon.client.policy import (
    OfferedWeights,
    PolicyClient,
    WeightsAcknowledgement,
    WeightsChunkLike,
    WeightsHeaderLike,
)
from andon.modeling.forward import response_statistics
from andon.modeling.loading import DTYPES
from andon.modeling.sequences import PromptGroup, pack
from andon.modeling.store import ModelStore
from andon.modeling.weight_codec import WeightsHeader, load_weights, model_weights
from benchmarks import shapes
from benchmarks.measuring import emit, parser, use_threads
from benchmarks.ppo_update import publish_models, service_process
from services.trainer.peers import Peers
from services.trainer.stages.context import StageClients
from services.trainer.weight_publisher import WeightPublisher

LEARNING_RATE = 3e-6
ADAM_EPS = 1e-5  # the trainer's default
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 120.0
METHOD = "/benchmark.Weights/Send"
IDLE_S = 0.1
IDLE_CPU_S = 0.002  # that two idle processes do not use in that time

Weights = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """One hand-over."""

    waiting_s: float
    waiting_cpu_s: float  # of both sides
    whole_s: float
    whole_cpu_s: float
    size_bytes: int


class Alone:
    """As much of a run as ``Peers`` looks at."""

    clients = StageClients(patience_s=TIMEOUT_S)

    def waiting(self, message: str) -> None:
        """Nobody watches."""

    def obey(self, state: Callable[[], dict[str, Any]]) -> None:
        """Nobody asks for anything."""

    def asked_to_halt(self) -> bool:
        """Nobody asks for anything."""
        return False


class FromAfar(PolicyClient):
    """A replica that does not see this host's memory, as if it ran on another one."""

    def update_weights(
        self, header: WeightsHeaderLike, chunks: Iterable[WeightsChunkLike], **options: Any
    ) -> WeightsAcknowledgement:
        """Name a process that the replica cannot look into."""
        return super().update_weights(_from_afar(header), chunks, **options)

    def offer_weights(
        self, header: WeightsHeaderLike, chunks: Iterable[WeightsChunkLike], **options: Any
    ) -> OfferedWeights:
        """The same for what is only offered."""
        return super().offer_weights(_from_afar(header), chunks, **options)


def _from_afar(header: WeightsHeaderLike) -> WeightsHeaderLike:
    assert isinstance(header, WeightsHeader)
    if header.memory is None:
        return header
    return dataclasses.replace(header, memory=dataclasses.replace(header.memory, process_id=1))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The clock, and the CPU seconds of both sides."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls, pid: int) -> Reading:
        """Read both; ``pid`` is the other side's process."""
        # What clock_getcpuclockid(3) gives on Linux; ticks of /proc would be too coarse.
        other_s = time.clock_gettime((~pid << 3) | 2)
        return cls(wall_s=time.perf_counter(), cpu_s=time.process_time() + other_s)


def hand_over_of(
    *, parts: Sequence[tuple[Reading, Reading]], whole: tuple[Reading, Reading], size_bytes: int
) -> HandOver:
    """``parts``: begin and end of what is waited for."""
    begin, end = whole
    return HandOver(
        waiting_s=sum(after.wall_s - before.wall_s for before, after in parts),
        waiting_cpu_s=sum(after.cpu_s - before.cpu_s for before, after in parts),
        whole_s=end.wall_s - begin.wall_s,
        whole_cpu_s=end.cpu_s - begin.cpu_s,
        size_bytes=size_bytes,
    )


class Publishing:
    """Ours: the trainer's publisher with one policy service."""

    def __init__(
        self, replica: PolicyClient, pid: int, store: ModelStore, *, dtype: str, threads: int
    ) -> None:
        self._pid = pid
        self._dtype = dtype
        self._version = 0
        self._shares_memory = not isinstance(replica, FromAfar)
        self._sent: list[tuple[str, int]] = []
        self._publisher = WeightPublisher(
            [replica],
            initial=store.resolve("sft/1").version,
            peers=Peers(Alone()),  # type: ignore[arg-type] # as much of a context as it looks at
            timeout_s=TIMEOUT_S,
            threads=threads,
            on_sent=lambda way, size_bytes, seconds: self._sent.append((way, size_bytes)),
        )

    def hand_over(self, weights: Weights) -> HandOver:
        """One update, as the PPO stage makes it."""
        self._version += 1
        begin = Reading.now(self._pid)
        prepared = self._publisher.prepare("policy", self._version, weights)
        given = Reading.now(self._pid)
        # Wait for what was begun, as while the guards look.
        _ = prepared.version
        _ = prepared.image(self._dtype) if self._shares_memory else prepared.delta(self._dtype)
        self._wait_until_idle()
        ready = Reading.now(self._pid)
        self._publisher.set_current(prepared)
        self._publisher.publish(state=dict)
        end = Reading.now(self._pid)
        way, size_bytes = self._sent[-1]
        # The first time the replica holds nothing that there could be a delta to.
        assert self._version == 1 or way == ("shared_memory" if self._shares_memory else "delta"), way
        return hand_over_of(parts=[(begin, given), (ready, end)], whole=(begin, end), size_bytes=size_bytes)

    def _wait_until_idle(self) -> None:
        """Until the replica has received and checked what it was offered: neither side works any more."""
        before_s = -IDLE_CPU_S
        while (now_s := Reading.now(self._pid).cpu_s) - before_s >= IDLE_CPU_S:
            before_s = now_s
            time.sleep(IDLE_S)


class PeerWay:
    """What one would do instead: a process that is told, takes the weights into its model, and says so."""

    def __init__(self, stack: ExitStack, *, kind: str, shape: str, dtype: str, folder: Path) -> None:
        command = [
            *(sys.executable, "-m", "benchmarks.weights", "--receive", kind),
            *("--shape", shape, "--dtype", dtype),
        ]
        self._process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(self._process.terminate)
        self._dtype = DTYPES[dtype]
        self._file = folder / f"{kind}.safetensors"
        self._kind = kind
        greeting = self._line()
        if kind == "grpc":
            channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{greeting}"))
            self._send: Callable[..., bytes] = channel.stream_unary(METHOD)

    def hand_over(self, weights: Weights) -> HandOver:
        """Cast, send, and wait until the other process has copied it into its model."""
        begin = Reading.now(self._process.pid)
        state = {name: tensor.to(self._dtype) for name, tensor in weights.items()}
        if self._kind == "grpc":
            self._send(_pieces(state), timeout=TIMEOUT_S)
        else:
            save_file(state, self._file)
            assert self._process.stdin is not None
            self._process.stdin.write(f"{self._file}\n")
            self._process.stdin.flush()
            self._line()
        end = Reading.now(self._process.pid)
        size_bytes = sum(tensor.nbytes for tensor in state.values())
        return hand_over_of(parts=[(begin, end)], whole=(begin, end), size_bytes=size_bytes)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"the receiver of weights by {self._kind} ended")
        return line


def _pieces(state: Weights) -> Iterator[bytes]:
    for tensor in state.values():
        view = tensor.reshape(-1).view(torch.uint8).numpy().data
        for begin in range(0, len(view), CHUNK_BYTES):
            yield bytes(view[begin : begin + CHUNK_BYTES])


def receive(kind: str, model: PreTrainedModel) -> None:
    """The peers' side of a sampler."""
    own = model_weights(model)
    if kind == "file":
        print("ready", flush=True)
        for line in sys.stdin:
            load_weights(model, load_file(line.strip()))
            print("done", flush=True)
        return
    buffer = bytearray(sum(tensor.nbytes for tensor in own.values()))

    def take(pieces: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        position = 0
        for piece in pieces:
            buffer[position : position + len(piece)] = piece
            position += len(piece)
        position = 0
        for tensor in own.values():
            tensor.copy_(
                torch.frombuffer(buffer, dtype=tensor.dtype, count=tensor.numel(), offset=position).view(
                    tensor.shape
                )
            )
            position += tensor.nbytes
        return b"done"

    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_unary_rpc_method_handler(take)
    service, method = METHOD.strip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()


class Learning:
    """Steps of Adam on random tokens."""

    def __init__(self, model: PreTrainedModel, shape: shapes.Shape, *, sequences: int, tokens: int) -> None:
        self._model = model
        self._size = (sequences, tokens)
        self._vocab_size = shape.vocab_size
        self._generator = torch.Generator().manual_seed(0)
        self._optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, eps=ADAM_EPS)

    def step(self) -> Weights:
        """One step; the weights after it, which the next one changes."""
        sequences, tokens = self._size
        ids = torch.randint(self._vocab_size, (sequences, 1 + tokens), generator=self._generator).tolist()
        batch = pack([PromptGroup(prompt=row[:1], responses=[row[1:]]) for row in ids])
        self._optimizer.zero_grad()
        (-response_statistics(self._model, batch, temperature=1.0).logprobs.mean()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        return model_weights(self._model)


def changed_share(old: Weights, new: Weights, dtype: torch.dtype) -> float:
    """Share of the values whose bits in the served type differ."""
    changed = sum(int((old[name] != new[name].to(dtype)).sum()) for name in new)
    return changed / sum(tensor.numel() for tensor in new.values())


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    flags = parser(__doc__)
    flags.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="what samplers serve")
    flags.add_argument("--way", default="shared", choices=["shared", "delta"], help="ours: one host or gRPC")
    flags.add_argument("--receive", choices=["file", "grpc"], help="be a peer's receiver")
    flags.add_argument("--sequences", type=int, default=8)
    flags.add_argument("--tokens", type=int, default=128)
    arguments = flags.parse_args(argv)
    use_threads(arguments.threads)
    shape = shapes.SHAPES[arguments.shape]
    codec = shapes.codec(shape)
    model = shapes.causal_lm(shape, codec)
    if arguments.receive:
        receive(arguments.receive, model.to(DTYPES[arguments.dtype]).requires_grad_(False))
        return
    served = DTYPES[arguments.dtype]
    with TemporaryDirectory() as name, TemporaryDirectory(dir="/dev/shm") as shm, ExitStack() as stack:
        folder = Path(name)
        store = ModelStore(folder / "store")
        publish_models(store, shape, codec)
        service = stack.enter_context(
            service_process("policy", store.root, arguments.threads, f"--dtype={arguments.dtype}")
        )
        client = PolicyClient if arguments.way == "shared" else FromAfar
        ours = Publishing(
            stack.enter_context(client(service.target)),
            service.process.pid,
            store,
            dtype=arguments.dtype,
            threads=max(2, arguments.threads),  # as the trainer has by default
        )
        peer = {"stack": stack, "shape": arguments.shape, "dtype": arguments.dtype}
        peers = (
            {
                "safetensors through a file": PeerWay(kind="file", folder=folder, **peer),
                "safetensors through /dev/shm": PeerWay(kind="file", folder=Path(shm), **peer),
            }
            if arguments.way == "shared"
            else {"gRPC, full copy": PeerWay(kind="grpc", folder=folder, **peer)}
        )
        if arguments.way == "delta" and arguments.dtype != "float32":
            peers["gRPC, full copy in float32"] = PeerWay(
                kind="grpc", folder=folder, **{**peer, "dtype": "float32"}
            )
        learning = Learning(model, shape, sequences=arguments.sequences, tokens=arguments.tokens)
        rounds: list[dict[str, HandOver]] = []
        shares: list[float] = []
        for number in range(arguments.repetitions + 2):  # the first is sent in full, the second warms up
            before = {key: tensor.to(served, copy=True) for key, tensor in model_weights(model).items()}
            weights = learning.step()
            played = {"ours": ours.hand_over(weights)}
            for peer_name, way in peers.items():
                played[peer_name] = way.hand_over(weights)
            if number >= 2:
                rounds.append(played)
                shares.append(changed_share(before, weights, served))
    medians = {
        way: {
            field.name: round(statistics.median(getattr(played[way], field.name) for played in rounds), 4)
            for field in dataclasses.fields(HandOver)
        }
        for way in rounds[0]
    }
    # Per round, so that a machine whose speed drifts slows both sides.
    ratios = {
        way: {
            basis: [
                round(getattr(played[way], basis) / getattr(played["ours"], basis), 2) for played in rounds
            ]
            for basis in ("waiting_s", "waiting_cpu_s", "whole_s", "whole_cpu_s")
        }
        for way in peers
    }
    full_bytes = sum(tensor.numel() for tensor in model_weights(model).values()) * served.itemsize
    emit(
        bench=f"andon_weights_{arguments.way}",
        dtype=arguments.dtype,
        hand_overs=medians,
        ratios=ratios,
        changed_share=round(statistics.median(shares), 4),
        bytes_of_full=round(medians["ours"]["size_bytes"] / full_bytes, 4),
        rate=round(1 / medians["ours"]["waiting_cpu_s"], 4),
        peer_rates={way: round(1 / medians[way]["waiting_cpu_s"], 4) for way in peers},
    )


if __name__ == "__main__":
    main()
