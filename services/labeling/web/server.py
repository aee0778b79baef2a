"""How the site is served: uvicorn on the event loop of the gRPC server, leaving signals to the process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from ipaddress import ip_address

import structlog
import uvicorn
from starlette.types import ASGIApp

from andon.rpc.server import ServerStartError
from services.labeling.config import LabelingConfig

_log = structlog.stdlib.get_logger(__name__)


class WebServer:
    """Serves one application between :meth:`start` and :meth:`drain`."""

    def __init__(self, config: LabelingConfig) -> None:
        self._config = config
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where people find the site."""
        if self._config.web_public_url is not None:
            return self._config.web_public_url.rstrip("/")
        scheme = "https" if self._config.web_tls_certificate is not None else "http"
        host = f"[{self._config.web_host}]" if ":" in self._config.web_host else self._config.web_host
        return f"{scheme}://{host}:{self.port}"

    async def start(self, app: ASGIApp) -> None:
        """Take the port and serve. Raises ServerStartError."""
        config = self._config
        listener = _listen(config.web_host, config.web_port)
        self.port = listener.getsockname()[1]
        try:
            settings = uvicorn.Config(
                app,
                loop="none",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=bool(config.web_trusted_proxies),
                forwarded_allow_ips=list(config.web_trusted_proxies),
                timeout_keep_alive=30,
                timeout_graceful_shutdown=max(1, round(config.drain_grace_s)),
                ssl_certfile=config.web_tls_certificate,
                ssl_keyfile=config.web_tls_key,
            )
            settings.load()
        except OSError as error:  # ssl.SSLError is one
            listener.close()
            raise ServerStartError(f"TLS certificate or key of the site: {error}") from error
        self._server = _Server(settings)
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[listener]))
        listening = asyncio.ensure_future(self._server.listening.wait())
        await asyncio.wait({listening, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            listening.cancel()
            await self._serving  # it has ended already, and tells why
        _log.info("site_open", url=self.url)

    async def drain(self) -> None:
        """Let running requests end and close the port."""
        server, serving = self._server, self._serving
        if server is None or serving is None:
            return
        server.should_exit = True
        await serving
        self._server = self._serving = None


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs the process."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets=sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ip_address(host.strip("[]")).version == 6 else socket.AF_INET
    except ValueError:
        family = socket.AF_INET
    # With the protocol named, asyncio sends each write at once (TCP_NODELAY); without it, a page's last part
    # waits up to 40 ms for the browser's word on the first.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ServerStartError(f"site port {host}:{port}: {error}") from error
    return listener
