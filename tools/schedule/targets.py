"""Tail-latency targets: p95 of whole queries, in milliseconds."""

from __future__ import annotations

from math import isfinite

from recreplay.runtime.errors import RecReplayError

# ncf, wide_deep, mt_wide_deep, dien and dlrm_rmc2 follow from the measurements that Kairos
# (HPDC'23) publishes for the models of DeepRecSys; dlrm_rmc1, dlrm_rmc3 and din are as commonly
# quoted for it. They are meant for server processors and tables of full size.
SLA_MS = {
    "ncf": 5.0,
    "wide_deep": 25.0,
    "mt_wide_deep": 25.0,
    "dien": 35.0,
    "din": 100.0,
    "dlrm_rmc1": 100.0,
    "dlrm_rmc2": 350.0,
    "dlrm_rmc3": 100.0,
}
LEAST_MS = 0.001  # serving.json has deadlines in whole microseconds


def target_for(name: str, given: float | None) -> float:
    """The target that was given, or else that of the reference model of this name."""
    if given is not None:
        if not (isfinite(given) and given >= LEAST_MS):
            raise RecReplayError(
                f"--target-ms is {given:g}; expected milliseconds, {LEAST_MS:g} or more"
            )
        return given
    if name not in SLA_MS:
        raise RecReplayError(
            f"no target is known for {name!r} ({', '.join(SLA_MS)}); give one by --target-ms"
        )
    return SLA_MS[name]
