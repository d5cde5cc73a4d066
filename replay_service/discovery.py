"""Prometheus's HTTP service discovery: one address tells where every process of the run serves its metrics."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from replay_service.process import advertised_host

TARGETS_PATH = "/targets"


def target_groups(endpoints: dict[str, str], *, run_id: str, env: str) -> list[dict[str, object]]:
    """The service discovery document: one group a process, labelled with its role, name, run and environment.

    Args:
        endpoints: process name ('actor-3') -> 'host:port'.
        run_id: becomes the label `run`.
        env: becomes the label `env`.
    """
    return [
        {
            "targets": [address],
            "labels": {"role": process.partition("-")[0], "process": process, "run": run_id, "env": env},
        }
        for process, address in endpoints.items()
    ]


class DiscoveryServer:
    """Serves the document at `/targets` from a thread."""

    def __init__(self, groups: Callable[[], list[dict[str, object]]], *, host: str, port: int) -> None:
        """Bind; port 0 takes a free one.

        Raises:
            OSError: the port is taken.
        """

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != TARGETS_PATH:
                    self.send_error(404, f"expected {TARGETS_PATH}")
                    return
                try:
                    body = json.dumps(groups()).encode()
                except Exception as error:
                    # Prometheus keeps its last list when discovery fails; a dead Redis must not end this thread.
                    self.send_error(503, f"{type(error).__name__}")
                    return
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Keep scrapes out of the log."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="discovery", daemon=True)

    @property
    def address(self) -> str:
        """host:port, as others reach it."""
        return f"{advertised_host(str(self._server.server_address[0]))}:{self._server.server_port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
