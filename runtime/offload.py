"""One model on two devices: large requests go to the accelerator, small ones stay on the host.

DeepRecSched (arXiv 2001.02772) finds from how many rows on: a small request is answered sooner by a
core than by a GPU that others wait for. Where the accelerator is lost, the host answers for it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from recreplay.runtime.engine import Runtime
from recreplay.runtime.errors import LanesLostError, OffloadError
from recreplay.runtime.jagged import rows_of
from recreplay.runtime.promises import cancel_with, hand_on, new_future

Array = np.ndarray[Any, Any]


class Offload:
    """Answers requests of `from_rows` rows or more on `accelerator`, and all others on `host`.

    It closes neither. What is refused by one is not tried on the other (`Overloaded` say), but for
    requests of an accelerator whose last lane is lost: those, and all after them, are the host's,
    and counted.
    """

    def __init__(self, host: Runtime, accelerator: Runtime, from_rows: int) -> None:
        """Raises OffloadError where the two do not take and give the same."""
        one, other = _surface(host), _surface(accelerator)
        if one != other:
            raise OffloadError(
                f"{accelerator.path} takes and gives {other}; expected what {host.path} does, "
                f"{one}; capture one model for both devices"
            )
        if type(from_rows) is not int or from_rows < 1:
            raise OffloadError(f"from_rows is {from_rows!r}; expected a whole number, 1 or more")
        self.host, self.accelerator, self.from_rows = host, accelerator, from_rows
        # What a stage of a funnel asks for.
        self.manifest, self.path, self.check = host.manifest, host.path, host.check
        self._by_row = next(s for s in host.manifest.inputs if s.kind != "values" and not s.user)
        self._lock = threading.Lock()
        self._offloaded = self._taken_over = 0

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """`Runtime.run` of one of the two."""
        if not self._is_large(inputs):
            return self.host.run(inputs)
        try:
            outputs = self.accelerator.run(inputs)
        except LanesLostError:
            self._take_over()
            return self.host.run(inputs)
        self._count()
        return outputs

    def submit(
        self, inputs: Mapping[str, Any], *, deadline_us: int | None = None
    ) -> Future[dict[str, Array]]:
        """`Runtime.submit` of one of the two."""
        if not self._is_large(inputs):
            return self.host.submit(inputs, deadline_us=deadline_us)
        answer: Future[dict[str, Array]] = new_future()
        asked = self.accelerator.submit(inputs, deadline_us=deadline_us)

        def told(asked: Future[dict[str, Array]]) -> None:
            hand_on(asked, answer, lambda outputs: outputs)

        def answered(asked: Future[dict[str, Array]]) -> None:
            if not answer.set_running_or_notify_cancel():
                return
            error = asked.exception()
            if not isinstance(error, LanesLostError):
                if error is None:
                    self._count()
                told(asked)
                return
            self._take_over()
            try:
                self.host.submit(inputs, deadline_us=deadline_us).add_done_callback(told)
            except BaseException as refused:
                answer.set_exception(refused)

        asked.add_done_callback(answered)
        cancel_with(answer, asked)
        return answer

    async def arun(
        self, inputs: Mapping[str, Any], *, deadline_us: int | None = None
    ) -> dict[str, Array]:
        """`Runtime.arun` of one of the two."""
        if not self._is_large(inputs):
            return await self.host.arun(inputs, deadline_us=deadline_us)
        try:
            outputs = await self.accelerator.arun(inputs, deadline_us=deadline_us)
        except LanesLostError:
            self._take_over()
            return await self.host.arun(inputs, deadline_us=deadline_us)
        self._count()
        return outputs

    def update_rows(self, table: str, ids: Any, values: Any) -> None:
        """`Runtime.update_rows` of both, the host's first."""
        self.host.update_rows(table, ids, values)
        self.accelerator.update_rows(table, ids, values)

    def update_weights(self, weights: Mapping[str, Any]) -> None:
        """`Runtime.update_weights` of both, the host's first."""
        self.host.update_weights(weights)
        self.accelerator.update_weights(weights)

    def stats(self) -> dict[str, Any]:
        """Requests that the accelerator answered, and that the host answered in its place; and the
        counters of each."""
        with self._lock:
            counted = {"offloaded": self._offloaded, "taken_over": self._taken_over}
        both = {"host": self.host.stats(), "accelerator": self.accelerator.stats()}
        return {**counted, **both}

    def _is_large(self, inputs: Mapping[str, Any]) -> bool:
        """What is no request is for the host to say."""
        try:
            rows = rows_of(self._by_row, inputs[self._by_row.name])
        except (KeyError, TypeError):
            return False
        if rows < self.from_rows:
            return False
        if self.accelerator.lanes_alive():
            return True
        self._take_over()
        return False

    def _count(self) -> None:
        with self._lock:
            self._offloaded += 1

    def _take_over(self) -> None:
        with self._lock:
            self._taken_over += 1


def _surface(runtime: Runtime) -> str:
    """All that a request and its answer depend on."""
    manifest = runtime.manifest
    inputs = ", ".join(
        f"{s.name} {s.kind} {s.describe()}{f' along {s.along}' if s.along else ''}"
        for s in manifest.inputs
    )
    outputs = ", ".join(
        f"{s.name} {s.dtype}[n{''.join(f', {d}' for d in s.row)}]" for s in manifest.outputs
    )
    users = f" for {manifest.users} users" if manifest.users else ""
    whole = " compared with one another" if manifest.row_mask else ""
    return f"({inputs}{users}{whole} -> {outputs})"
