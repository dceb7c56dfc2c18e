"""How a runtime serves: lanes, batching, chunks, queue. The content of `serving.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from recreplay.runtime.errors import RecReplayError

_LEAST = {
    "lanes": 1,
    "max_queue": 1,
    "chunk_rows": 1,
    "max_delay_us": 0,
    "deadline_us": 1,
    "inline_us": 0,
}
SERVING = "serving.json"
Wait = Literal["spin", "block"]


@dataclass(frozen=True, slots=True)
class Serving:
    """Options of `Runtime.load`. All but `lanes` and `wait` are about `submit` and `arun`.

    `lanes`: how many requests replay at the same time.
    `max_delay_us`: None runs each request by itself. A number packs requests that wait into one
    replay, and lets the first of them wait so many microseconds for others; 0 packs only those
    that wait already.
    `chunk_rows`: requests of more rows are cut into parts of so many, which lanes share; None
    leaves them whole.
    `max_queue`: requests (or parts) that may wait; beyond, `Overloaded` is raised.
    `deadline_us`: how long a request may wait before its replay begins, unless it says otherwise;
    then it is answered by `DeadlineExceeded`.
    `inline_us`: `arun` answers a request on the thread of its event loop, where a lane is free, if
    its replay takes no longer than so many microseconds, as measured at load: to hand it to the
    thread of a lane, and the answer back, takes longer. 0 does so never.
    `wait`: on CUDA, whether the thread of a replay keeps a core until the replay has ended
    (`"spin"`), or sleeps and is woken some microseconds late (`"block"`), which leaves cores to
    others where lanes are many. On a CPU the thread is the one that computes.
    """

    lanes: int = 1
    max_delay_us: int | None = None
    chunk_rows: int | None = None
    max_queue: int = 1024
    deadline_us: int | None = None
    inline_us: int = 100
    wait: Wait = "spin"

    def __post_init__(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is None and defaults[name] is None:
                continue
            if type(value) is not int or value < least:
                raise RecReplayError(
                    f"{name} is {value!r}; expected a whole number, {least} or more"
                )
        if self.wait not in get_args(Wait):
            raise RecReplayError(f"wait is {self.wait!r}; expected 'spin' or 'block'")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, path: str | Path) -> Serving:
        """Read a `serving.json`; its key `report`, what a scheduler measured, is not read."""
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise RecReplayError(f"{path} is no serving.json: {error}") from error
        return cls.from_json(data, str(path))

    @classmethod
    def from_json(cls, data: Any, where: str) -> Serving:
        """The options that `data` holds, which came from `where`."""
        names = [field.name for field in fields(cls)]
        if not isinstance(data, dict) or (unknown := sorted({*data} - {*names, "report"})):
            what = f"unknown {', '.join(unknown)}" if isinstance(data, dict) else "not an object"
            raise RecReplayError(f"{where}: {what}; expected {', '.join(names)}")
        try:
            return cls(**{name: data[name] for name in names if name in data})
        except RecReplayError as error:
            raise RecReplayError(f"{where}: {error}") from None
