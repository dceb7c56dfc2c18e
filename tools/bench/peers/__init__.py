"""What a user would pick instead of a replay, each behind the same small protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from recreplay.runtime.errors import RecReplayError
from recreplay.tools.bench.peers.aotinductor import AotInductor
from recreplay.tools.bench.peers.base import Peer
from recreplay.tools.bench.peers.compiled import Compiled
from recreplay.tools.bench.peers.cuda_graph import CudaGraph
from recreplay.tools.bench.peers.eager import Eager
from recreplay.tools.bench.peers.multi_stream import MultiStream
from recreplay.tools.bench.peers.onnx_runtime import OnnxRuntime
from recreplay.tools.bench.peers.ours import Ours

_SIZES = "dynamic=False (numbers of jagged values are marked dynamic)"
_PEERS: tuple[Peer, ...] = (
    Eager(),
    MultiStream(),
    CudaGraph(),
    Compiled("compile", "default", f"torch.compile, {_SIZES}", graphs=False),
    Compiled(
        "reduce_overhead",
        "reduce-overhead",
        f"torch.compile mode=reduce-overhead, {_SIZES}: CUDA graphs by cudagraph trees",
        graphs=True,
    ),
    Compiled(
        "max_autotune",
        "max-autotune",
        f"torch.compile mode=max-autotune, {_SIZES}; on the CPU with freezing, without which it "
        "packs no weights",
        graphs=True,
    ),
    AotInductor("aotinductor", static=False),
    AotInductor("aotinductor_static", static=True),
    OnnxRuntime("onnxruntime", bags="exported"),
    OnnxRuntime("onnxruntime_gather", bags="gather"),
    Ours(),
)

PEERS: Mapping[str, Peer] = MappingProxyType({peer.name: peer for peer in _PEERS})
ALWAYS = ("eager", "ours")  # what all are checked against, and what all are compared with


def find_peers(names: Sequence[str]) -> list[Peer]:
    """Peers by name in a fixed order, `all` of them if asked; eager and ours are always there."""
    unknown = [name for name in names if name not in PEERS and name != "all"]
    if unknown:
        raise RecReplayError(f"unknown peer {unknown[0]!r}; there is all, {', '.join(PEERS)}")
    wanted = {*names, *ALWAYS}
    return [peer for peer in _PEERS if peer.name in wanted or "all" in wanted]
