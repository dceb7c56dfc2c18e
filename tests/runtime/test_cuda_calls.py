"""What is asked of CUDA, where there is none: which calls, in which order, by names that exist."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from contextlib import closing
from types import ModuleType
from typing import Any

import pytest

from recreplay.runtime.devices import cuda, cuda_replay, cuda_streams
from recreplay.runtime.devices.cuda import CudaGraph, upload_node
from recreplay.runtime.devices.cuda_bindings import checked
from recreplay.runtime.devices.cuda_replay import BindingsReplays, SleepEvent
from recreplay.runtime.errors import RecReplayError, ReplayError
from recreplay.runtime.serving import Serving
from recreplay.tools import captured_graph

# Names


def calls(module: ModuleType) -> list[tuple[str, int]]:
    """`cudart.NAME` of a module, and with how many arguments it is called; -1 where it is not."""
    tree = ast.parse(inspect.getsource(module))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("cudart", "bindings()"):
            found.setdefault(id(node), (node.attr, -1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node.func) in found:
            assert isinstance(node.func, ast.Attribute)
            found[id(node.func)] = (node.func.attr, len(node.args))
    return sorted(set(found.values()))


NAMED = [(m, *call) for m in (cuda, cuda_replay, cuda_streams, captured_graph) for call in calls(m)]


def test_the_calls_are_found() -> None:
    names = {name for _, name, _ in NAMED}
    assert {"cudaGraphLaunch", "cudaEventRecord", "cudaGraphGetEdges"} <= names


@pytest.mark.parametrize(
    ("module", "name", "given"), NAMED, ids=lambda value: getattr(value, "__name__", value)
)
def test_cuda_bindings_has_what_is_called(module: ModuleType, name: str, given: int) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    called = getattr(runtime, name)
    if given >= 0 and not isinstance(called, type):
        # The first line of its text is the signature; a default says that it may be left out.
        signature = re.match(rf"{name}\((.*)\)", called.__doc__)
        assert signature is not None, called.__doc__[:100]
        parameters = [p for p in signature[1].split(", ") if p]
        needed = [p for p in parameters if "=" not in p]
        assert len(needed) <= given <= len(parameters)


# Order


class Fake:
    """CUDA's runtime as far as a replay needs it: keeps what it is asked, and fails on request."""

    cudaEventBlockingSync, cudaEventDisableTiming = 1, 2

    class cudaError_t:
        cudaSuccess = 0

        def __new__(cls, code: int) -> int:  # type: ignore[misc]
            return code

    class cudaGraphNodeType:
        cudaGraphNodeTypeMemcpy = "copy"

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.fails: dict[str, int] = {}
        self.roots = ["copy"]
        self.cudaGraphExec_t = self.cudaStream_t = self.cudaGraph_t = lambda handle: handle
        self.cudaEvent_t = self.cudaGraph_t

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        values = {"cudaEventCreateWithFlags": (9,)}

        def call(*given: Any) -> tuple[Any, ...]:
            if name == "cudaGraphGetRootNodes":
                return 0, self.roots, len(self.roots)
            if name == "cudaGraphNodeGetType":
                return 0, given[0]
            self.asked.append((name, *given))
            return (self.fails.get(name, 0), *values.get(name, ()))

        return call

    def names(self) -> list[str]:
        found = [name.removeprefix("cuda") for name, *_ in self.asked]
        self.asked.clear()
        return found


class Captured:
    """A captured graph, and the stream that it is launched on."""

    cuda_stream, device = 7, "cuda:1"

    def raw_cuda_graph_exec(self) -> int:
        return 5

    def raw_cuda_graph(self) -> int:
        return 6


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    for module in (cuda, cuda_replay):
        monkeypatch.setattr(module, "bindings", lambda: fake)
    return fake


def graph(event: SleepEvent | None = None) -> CudaGraph:
    run = BindingsReplays()(5, 7, None if event is None else event.handle)
    return CudaGraph(Captured(), Captured(), run, run, upload_node(Captured()))  # type: ignore[arg-type]


def test_a_request_is_one_launch_and_one_wait(asked: Fake) -> None:
    made = graph()
    made.replay()
    assert asked.asked == [("cudaGraphLaunch", 5, 7), ("cudaStreamSynchronize", 7)]


def test_the_upload_is_turned_off_for_what_is_on_the_device(asked: Fake) -> None:
    made = graph()
    made.replay_fed()
    assert asked.asked[0] == ("cudaGraphNodeSetEnabled", 5, "copy", 0)
    assert asked.names()[1:] == ["GraphLaunch", "StreamSynchronize"]
    made.replay_fed()
    assert asked.names() == ["GraphLaunch", "StreamSynchronize"]
    made.replay()
    assert asked.asked[0] == ("cudaGraphNodeSetEnabled", 5, "copy", 1)


def test_what_is_fed_is_called_otherwise(asked: Fake) -> None:
    """It may wait for callbacks of Python's, which who keeps the lock would wait for in vain."""
    called: list[str] = []

    def run(which: str) -> Callable[[], int]:
        def call() -> int:
            called.append(which)
            return 0

        return call

    made = CudaGraph(Captured(), Captured(), run("run"), run("fed"), "copy")  # type: ignore[arg-type]
    made.replay()
    made.replay_fed()
    made.replay()
    assert called == ["run", "fed", "run"]


def test_a_wait_asleep_is_for_an_event_after_the_launch(asked: Fake) -> None:
    event = SleepEvent()
    assert asked.asked == [("cudaEventCreateWithFlags", 3)]
    made = graph(event)
    asked.asked.clear()
    made.replay()
    assert asked.asked == [
        ("cudaGraphLaunch", 5, 7),
        ("cudaEventRecord", 9, 7),
        ("cudaEventSynchronize", 9),
    ]
    asked.asked.clear()
    event.close()
    assert asked.asked == [("cudaEventDestroy", 9)]


def test_with_several_devices_a_request_makes_its_own_current(
    asked: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device:
        """As torch's, which may be entered again and again."""

        def __init__(self, device: str) -> None:
            self._device = device

        def __enter__(self) -> None:
            asked.asked.append(("enter", self._device))

        def __exit__(self, *_: object) -> None:
            asked.asked.append(("leave", self._device))

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.device", Device)
    made = graph()
    for _ in range(2):
        made.replay()
        assert asked.asked[0] == ("enter", "cuda:1")
        assert asked.asked[-1] == ("leave", "cuda:1")
        assert asked.names() == ["enter", "GraphLaunch", "StreamSynchronize", "leave"]


@pytest.mark.parametrize("asleep", [False, True])
@pytest.mark.parametrize("call", ["cudaGraphLaunch", "WAIT", "cudaEventRecord"])
def test_an_error_of_any_call_is_told(asked: Fake, call: str, asleep: bool) -> None:
    if call == "cudaEventRecord" and not asleep:
        call = "WAIT"
    waits = "cudaEventSynchronize" if asleep else "cudaStreamSynchronize"
    made = graph(SleepEvent() if asleep else None)
    asked.fails[waits if call == "WAIT" else call] = 700
    told = r"^replaying a CUDA graph failed: (launch 700, wait 0|launch 0, wait 700);"
    with pytest.raises(ReplayError, match=told):
        made.replay()
    asked.fails.clear()
    made.replay()


def test_closing_does_not_hide_what_broke_the_context(asked: Fake) -> None:
    """After a device assert every call says so, and the caller has been told by its replay."""
    reset = []

    class Broken(Captured):
        def synchronize(self) -> None:
            raise RuntimeError("CUDA error: device-side assert triggered")

        def reset(self) -> None:
            reset.append(1)

    asked.fails["cudaStreamSynchronize"] = 710
    run = BindingsReplays()(5, 7, None)
    made = CudaGraph(Broken(), Broken(), run, run, "copy")  # type: ignore[arg-type]
    with pytest.raises(ReplayError, match=r"launch 0, wait 710"), closing(made):
        made.replay()
    assert reset == [1]


def test_a_graph_that_begins_with_something_else_is_refused(asked: Fake) -> None:
    asked.roots = ["copy", "kernel"]
    with pytest.raises(RecReplayError, match=r"^a captured graph begins with .*; expected one c"):
        graph()


def test_a_call_that_fails_is_an_error() -> None:
    assert checked((0, 1, 2)) == (1, 2)
    with pytest.raises(RecReplayError, match=r"^CUDA call failed: 2$"):
        checked((2,))


# Choosing


def test_waits_are_chosen_by_name() -> None:
    assert Serving().wait == "spin"
    assert Serving(wait="block").to_json()["wait"] == "block"
    with pytest.raises(RecReplayError, match=r"^wait is 'sleep'; expected 'spin' or 'block'$"):
        Serving(wait="sleep")  # type: ignore[arg-type]
