"""Issuing a plan on a device: what streams and events make certain, checked by simulation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recreplay.runtime.plan import Plan, plan_from
from recreplay.runtime.record import issue


class Copies:
    """Staging memory whose copies are recorded like any other launch."""

    def upload(self) -> None:
        raise AssertionError("recording must not run anything")

    download = upload


class Simulated:
    """A recording on streams that run in order and know nothing of each other but by events.

    Each stream carries the set of launches that are certainly complete at its end. `before[i]` is
    what is certain when launch i begins.
    """

    def __init__(self) -> None:
        self.done: dict[int, frozenset[int]] = {}
        self.launched: list[tuple[object, int]] = []
        self.before: list[frozenset[int]] = []
        self.waited: dict[int, list[frozenset[int]]] = {}
        self.events: list[frozenset[int]] = []
        self.current: int | None = None

    @contextmanager
    def on(self, stream: int) -> Iterator[None]:
        assert self.current is None, "streams are not nested"
        self.current = stream
        yield
        self.current = None

    def launch(self, call: Any) -> None:
        assert self.current is not None, "a launch needs a stream"
        number = len(self.launched)
        known = self.done.get(self.current, frozenset())
        self.launched.append((call, self.current))
        self.before.append(known)
        self.done[self.current] = known | {number}

    def record_event(self, stream: int) -> object:
        self.events.append(self.done.get(stream, frozenset()))
        return len(self.events) - 1

    def wait_event(self, stream: int, event: object) -> None:
        assert isinstance(event, int), "an event is waited for that was never recorded"
        assert self.current is None
        known = self.events[event]
        self.waited.setdefault(stream, []).append(known)
        self.done[stream] = self.done.get(stream, frozenset()) | known


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    streams = draw(st.lists(st.integers(0, 5), min_size=1, max_size=30))
    numbers = {s: i for i, s in enumerate(sorted(set(streams)))}
    n = len(streams)
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))
    drawn = draw(st.lists(pairs, max_size=3 * n))
    edges = {(min(p), max(p)) for p in drawn if p[0] != p[1]}
    return plan_from("any", [f"s{i}" for i in range(n)], [numbers[s] for s in streams], edges)


def simulate(plan: Plan) -> tuple[Simulated, Copies, Copies]:
    recording, inputs, outputs = Simulated(), Copies(), Copies()
    launches = [lambda i=i: i for i in range(len(plan.steps))]
    issue(plan, launches, inputs, outputs, recording)  # type: ignore[arg-type]
    assert [call for call, _ in recording.launched[1:-1]] == launches
    return recording, inputs, outputs


UNTIMED = settings(deadline=None, max_examples=200)


@UNTIMED
@given(plan=plans())
def test_every_launch_is_on_the_stream_of_its_step(plan: Plan) -> None:
    recording, inputs, outputs = simulate(plan)
    streams = [stream for _, stream in recording.launched]
    assert streams == [0, *(step.stream for step in plan.steps), 0]
    assert recording.launched[0][0] == inputs.upload
    assert recording.launched[-1][0] == outputs.download


@UNTIMED
@given(plan=plans())
def test_every_data_edge_is_ordered_in_the_execution(plan: Plan) -> None:
    recording, _, _ = simulate(plan)
    for producer, consumer in plan.edges:
        assert producer + 1 in recording.before[consumer + 1]


@UNTIMED
@given(plan=plans())
def test_every_stream_waits_for_the_fork_before_its_first_launch(plan: Plan) -> None:
    recording, _, _ = simulate(plan)
    for known in recording.before[1:]:
        assert 0 in known  # the inputs have arrived
    for stream in range(1, plan.streams):
        assert 0 in recording.waited[stream][0]


@UNTIMED
@given(plan=plans())
def test_everything_is_joined_before_the_download(plan: Plan) -> None:
    recording, _, _ = simulate(plan)
    assert recording.before[-1] == set(range(len(plan.steps) + 1))
    # A capture may only end when each forked stream has been joined to the main one.
    assert recording.done[0] == set(range(len(plan.steps) + 2))
    for stream in range(1, plan.streams):
        assert recording.done[stream] <= recording.done[0]


@UNTIMED
@given(plan=plans())
def test_events_are_recorded_once_and_only_where_needed(plan: Plan) -> None:
    recording, _, _ = simulate(plan)
    targets = {wait for step in plan.steps for wait in step.waits}
    sides = plan.streams - 1
    assert len(recording.events) == 1 + len(targets) + sides
    waits = sum(len(step.waits) for step in plan.steps)
    assert sum(map(len, recording.waited.values())) == sides + waits + sides


@UNTIMED
@given(plan=plans(), data=st.data())
def test_a_dropped_wait_shows_in_the_simulation(plan: Plan, data: st.DataObject) -> None:
    """The simulation can tell: without one wait, some data edge is no longer ordered."""
    waiting = [i for i, step in enumerate(plan.steps) if step.waits]
    if not waiting:
        return
    at = data.draw(st.sampled_from(waiting))
    steps = list(plan.steps)
    step = steps[at]
    dropped = data.draw(st.sampled_from(step.waits))
    waits = tuple(w for w in step.waits if w != dropped)
    steps[at] = type(step)(step.name, step.stream, waits)
    recording, _, _ = simulate(Plan(plan.strategy, tuple(steps), plan.edges))
    assert any(p + 1 not in recording.before[c + 1] for p, c in plan.edges)


def test_a_launch_for_each_step_is_demanded() -> None:
    plan = plan_from("any", ["a", "b"], [0, 0], [(0, 1)])
    with pytest.raises(ValueError, match="shorter"):
        issue(plan, [lambda: None], Copies(), Copies(), Simulated())  # type: ignore[arg-type]


def test_the_calls_of_a_fork_and_a_join_in_order() -> None:
    calls: list[str] = []

    class Log(Simulated):
        def launch(self, call: Any) -> None:
            calls.append(f"launch on {self.current}")
            super().launch(call)

        def record_event(self, stream: int) -> object:
            event = super().record_event(stream)
            calls.append(f"record {event} on {stream}")
            return event

        def wait_event(self, stream: int, event: object) -> None:
            calls.append(f"{stream} waits for {event}")
            super().wait_event(stream, event)

    plan = plan_from("any", ["a", "b", "c"], [0, 1, 0], [(0, 2), (1, 2)])
    issue(plan, [lambda: None] * 3, Copies(), Copies(), Log())  # type: ignore[arg-type]
    assert calls == [
        "launch on 0",
        "record 0 on 0",
        "launch on 0",
        "1 waits for 0",
        "launch on 1",
        "record 1 on 1",
        "0 waits for 1",
        "launch on 0",
        "record 2 on 1",
        "0 waits for 2",
        "launch on 0",
    ]
