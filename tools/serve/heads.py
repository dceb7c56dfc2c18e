"""HTTP connections whose clients send the head of a request in time, or lose the connection."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def timed_heads(seconds: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, which itself waits for the first head, and for the rest of any head, as
    long as the connection lasts. Bodies are the application's to wait for."""

    class TimedHeads(HttpToolsProtocol):  # h11 takes 1 ms more for half a megabyte
        _in_head = True
        _clock: asyncio.TimerHandle | None = None

        def connection_made(  # type: ignore[override]
            self, transport: asyncio.Transport
        ) -> None:
            super().connection_made(transport)
            self._start()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head and self._clock is None:  # most heads come in one piece
                self._start()

        def on_message_begin(self) -> None:
            self._in_head = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._stop()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._in_head = False
            self._stop()
            super().connection_lost(exc)

        def _start(self) -> None:
            self._clock = self.loop.call_later(seconds, self._late)

        def _stop(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

        def _late(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._start()  # the request before it on this connection is still being answered
            else:
                self.transport.close()

    return TimedHeads
