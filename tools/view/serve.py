"""The page on localhost, with the counters of a runtime that is loaded beside it.

The runtime is this process's own: it counts the requests that `--traffic` replays in it, and says
nothing about other processes that have loaded the same artifact.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from recreplay.runtime import Runtime
from recreplay.runtime.artifact import Artifact
from recreplay.runtime.errors import RecReplayError
from recreplay.tools.console import report_notice
from recreplay.tools.view.live import LiveTraffic

_LOCAL = ("127.0.0.1", "localhost", "[::1]")


class PageServer(ThreadingHTTPServer):
    """Serves the page at `/` and live metrics at `/metrics.json`."""

    daemon_threads = True

    def __init__(self, page: str, traffic: LiveTraffic, port: int) -> None:
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise RecReplayError(
                f"cannot serve on port {port}: {error}; choose another by --port, or 0 for any"
            ) from error
        self.page = page.encode()
        self.traffic = traffic

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in _LOCAL:  # another site's name that resolves to this machine
            self.send_error(403, "served on localhost only")
        elif self.path == "/":
            self._answer("text/html; charset=utf-8", self.server.page)
        elif self.path == "/metrics.json":
            body = json.dumps(self.server.traffic.snapshot(), allow_nan=False).encode()
            self._answer("application/json", body)
        else:
            self.send_error(404)

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve_page(opened: Artifact, page: str, port: int, rate: float) -> None:
    """Serve until interrupted."""
    with Runtime.load(opened.path) as runtime:
        traffic = LiveTraffic(opened, runtime, rate)
        server = PageServer(page, traffic, port)
        stop = threading.Event()
        driver = threading.Thread(target=traffic.drive, args=(stop,), daemon=True)
        driver.start()
        report_notice(f"serving {server.url} on this machine only; stop with Ctrl-C")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            report_notice("stopped")
        finally:
            stop.set()
            driver.join()
            server.server_close()
