"""The server process: one socket, one event loop, one worker behind them."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable

import uvicorn

from pipeline.errors import AR2UNetError
from pipeline.web.app import create_app
from pipeline.web.service import Service
from pipeline.web.settings import Settings

__all__ = ["open_socket", "run_server"]

GRACE_SECONDS = 5  # for answers that are on their way when the server is stopped
BACKLOG = 2048


class Server(uvicorn.Server):
    """Uvicorn, which before it waits for open requests lets those go that only wait for news."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End well."""
        self.service.watchers.close()
        await super().shutdown(sockets)


def run_server(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until interrupted or terminated.

    Args:
        settings: What the server is told.
        announce: Gets the page's address as soon as it can be opened.

    Raises:
        AR2UNetError: If the address, the folder or the bundle cannot be used.
    """
    os.umask(0o077)  # scans are for nobody else on this machine
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    logging.getLogger("pipeline.web").setLevel(logging.INFO)
    with open_socket(settings.host, settings.port) as listener:
        service = Service(settings)
        service.start()
        # No access log: the id in an address is what opens a finished job.
        config = uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        announce(_address(settings.host, listener.getsockname()[1]))
        Server(config, service).run(sockets=[listener])


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on an address.

    Raises:
        AR2UNetError: If that is not possible.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = "choose another with --port or --host"
        raise AR2UNetError(f"cannot listen on {host}, port {port}: {reason}; {remedy}") from error
    return listener


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
