"""What the scheduler chooses: how queries are cut, batched and placed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recreplay.runtime import Serving


@dataclass(frozen=True, slots=True)
class Setting:
    """`threshold`: queries of so many items or more go whole to the accelerator; None: none do."""

    lanes: int
    chunk_rows: int | None = None
    max_delay_us: int | None = None
    threshold: int | None = None

    def serving(self, target_ms: float, mean_ms: float) -> Serving:
        """As the runtime takes it. The queue holds what can be answered within the target."""
        waiting = max(4, round(2 * self.lanes * target_ms / max(mean_ms, 1e-3)))
        return Serving(
            lanes=self.lanes,
            max_delay_us=self.max_delay_us,
            chunk_rows=self.chunk_rows,
            max_queue=waiting,
            deadline_us=round(target_ms * 1000),
        )

    def open_ended(self) -> Serving:
        """The same without limits, as capacity is searched with."""
        return Serving(
            lanes=self.lanes,
            max_delay_us=self.max_delay_us,
            chunk_rows=self.chunk_rows,
            max_queue=1_000_000,
        )

    def describe(self) -> str:
        parts = [f"{self.lanes} lanes"]
        parts.append("whole" if self.chunk_rows is None else f"chunks of {self.chunk_rows}")
        if self.max_delay_us is not None:
            parts.append(f"batched within {self.max_delay_us} µs")
        if self.threshold is not None:
            parts.append(f"accelerator from {self.threshold}")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "lanes": self.lanes,
            "chunk_rows": self.chunk_rows,
            "max_delay_us": self.max_delay_us,
            "threshold": self.threshold,
        }
