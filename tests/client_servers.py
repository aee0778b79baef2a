"""Servers on loopback for tests of the clients, with whatever fakes a test puts on them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from andon.client.channel import ChannelOptions

FAST = ChannelOptions(initial_backoff_s=0.01, max_backoff_s=0.02, reconnect_backoff_s=0.1)


@contextmanager
def serving(add: Callable[[grpc.Server], None], port: int = 0) -> Iterator[int]:
    """A server with whatever ``add`` puts on it; yields its port."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    add(server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield bound
    finally:
        server.stop(grace=None).wait()
