"""`grouped_lookup`: what it computes on the CPU, and what its kernel is compiled to for GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from grouped_cases import Feature, build, features
from hypothesis import given, settings
from hypothesis import strategies as st

from recreplay.runtime.aten import GROUPED_LOOKUP, resolve
from recreplay.runtime.lookup_slots import (
    FIELDS,
    SPLITS,
    THREADS,
    UNROLL,
    LookupSlot,
    for_threads,
    pack_slots,
    unpack_slots,
    vector,
)

HERE = Path(__file__).parent

# On the CPU


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_plain_torch_gives_what_embedding_bag_gives(data: st.DataObject) -> None:
    batch = data.draw(st.sampled_from([0, 1, 2, 5, 33]))
    made = build(
        data.draw(st.lists(features(batch), min_size=1, max_size=4)),
        batch,
        split=data.draw(st.sampled_from(SPLITS)),
        seed=data.draw(st.integers(0, 10**6)),
        dtype=data.draw(st.sampled_from([torch.float32, torch.float16, torch.uint8])),
        ids_dtype=data.draw(st.sampled_from([torch.int32, torch.int64])),
        bad=data.draw(st.sampled_from([0.0, 0.3])),
        widens=True,
    )
    got = resolve(GROUPED_LOOKUP)(*made.arguments())
    torch.testing.assert_close(got.view(batch, made.width), made.wanted, rtol=1e-5, atol=1e-5)


SLOTS = st.builds(
    LookupSlot,
    *[st.integers(0, 2**62)] * 8,
    mean=st.booleans(),
    out_base=st.integers(0, 2**62),
    out_stride=st.integers(0, 2**62),
    wide=st.booleans(),
    pairs_base=st.integers(0, 2**62),
)


@given(st.lists(SLOTS, min_size=1))
def test_slots_survive_packing(slots: list[LookupSlot]) -> None:
    assert pack_slots(slots).shape == (len(slots), FIELDS)
    assert unpack_slots(pack_slots(slots)) == slots


@given(
    *(st.integers(1, 3000), st.integers(0, 9), st.integers(0, 9)),
    *(st.sampled_from([1, 2, 4]), st.sampled_from(SPLITS)),
)
def test_threads_cover_each_column_once(
    width: int, base: int, out: int, itemsize: int, split: int
) -> None:
    slot = LookupSlot(3, base, 10, width, width, 0, 1, 1, False, out, width)
    parts = for_threads(slot, itemsize, split)
    assert [p.base - base for p in parts] == [p.out_base - out for p in parts]
    columns = [p.base - base + c for p in parts for c in range(p.width)]
    assert columns == list(range(width))
    for part in parts:
        step = vector(itemsize) if part.wide else 1
        threads = 1 << part.lanes_log2
        assert threads <= THREADS // split
        assert threads // 2 * step < part.width <= threads * step
        if part.wide:
            assert not any(n % step for n in (part.base, part.stride, part.width, part.out_base))


def test_shapes_are_known_without_running() -> None:
    """With symbolic sizes, as a package for many buckets is traced."""
    from torch.export import Dim, export

    class Lookup(torch.nn.Module):
        def forward(self, weights: Any, ids: Any, slots: Any) -> Any:
            batch = ids.shape[0]
            flat = resolve(GROUPED_LOOKUP)(
                *(weights, ids, None, None, slots, None, batch * 8, batch, 64, 1, False)
            )
            return flat.view(batch, 8)

    slot = LookupSlot(5, 0, 10, 8, 8, 0, 1, 1, False, 0, 8)
    example = (torch.randn(80), torch.arange(5), pack_slots(for_threads(slot, 4, 1)))
    shapes = ({0: Dim("rows", min=1)}, {0: Dim("batch", min=2, max=64)}, None)
    exported = export(Lookup(), example, dynamic_shapes=shapes)
    (call,) = [n for n in exported.graph.nodes if str(n.target) == GROUPED_LOOKUP]
    assert not isinstance(call.meta["val"].shape[0], int)
    torch.testing.assert_close(exported.module()(*example), example[0][:40].view(5, 8))


# The kernel

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None,
    reason="Triton is not installed, so the CUDA kernel cannot be interpreted or compiled",
)


def _interpreter_problem() -> str:
    if find_spec("triton") is None:
        return "Triton is not installed"
    version = metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < (3, 9):
        return f"the interpreter of Triton {version} does not run with NumPy 2.4; 3.9 does"
    return ""


@pytest.mark.skipif(bool(_interpreter_problem()), reason=_interpreter_problem())
def test_the_interpreted_kernel_gives_what_embedding_bag_gives() -> None:
    """In a process of its own, since Triton reads on import whether it is to interpret."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "interpreted_kernel.py"],
        cwd=HERE,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"\d\d passed", done.stdout), done.stdout[-1000:]


# Compute capability, and what a kernel is compiled for: dtype, dtype of ids, threads that share a
# bag, jagged bags, factors.
TARGETS = (80, 90, 100)
FORMS: tuple[tuple[str, str, int, bool, bool], ...] = (
    ("fp32", "i64", 1, False, False),
    ("fp32", "i32", 8, True, True),
    ("fp16", "i32", 1, False, False),
    ("u8", "i64", 4, True, False),
)


class Compiled:
    """The kernel for one target, and what the assembler made of it."""

    def __init__(self, capability: int, form: tuple[str, str, int, bool, bool]) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        from recreplay.runtime.grouped_kernel import grouped_lookup_kernel

        dtype, ids, split, jagged, scaled = form
        self.jagged = jagged
        self.itemsize = {"fp32": 4, "fp16": 2, "u8": 1}[dtype]
        given = "fp32" if dtype == "u8" else dtype
        pointers = {
            **{"weights": f"*{dtype}", "ids": f"*{ids}", "offsets": "*i64"},
            **{"scales": f"*{given}", "slots": "*i64", "pairs": "*fp32", "out": f"*{given}"},
        }
        constants = {
            **{"FIELDS": FIELDS, "LANES": THREADS // split, "SPLIT": split},
            **{"WIDE": vector(self.itemsize), "UNROLL": UNROLL},
            **{"JAGGED": jagged, "SCALED": scaled, "BYTES": dtype == "u8"},
        }
        names = [*pointers, *constants]
        source = ASTSource(
            fn=grouped_lookup_kernel,
            signature={**pointers, **dict.fromkeys(constants, "constexpr")},
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in pointers},
        )
        target = GPUTarget("cuda", capability, 32)
        made = triton.compile(source, target=target, options={"num_warps": THREADS // 32})
        self.shared = int(made.metadata.shared)
        self.ttir, self.ptx = str(made.asm["ttir"]), str(made.asm["ptx"])
        self._cubin: bytes = made.asm["cubin"]
        self._tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def tool(self, name: str, *options: str, folder: Path) -> str:
        """What one of the tools that Triton brings along says about the compiled kernel."""
        file = folder / "kernel.cubin"
        file.write_bytes(self._cubin)
        command = [str(self._tools / name), *options, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module", params=[(c, f) for c in TARGETS for f in FORMS], ids=str)
def compiled(request: pytest.FixtureRequest) -> Compiled:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 is set: nothing is compiled")
    return Compiled(*request.param)


@needs_triton
def test_registers_and_shared_memory(compiled: Compiled, tmp_path: Path) -> None:
    """3 programs fit a multiprocessor of 65,536 registers, 4 without offsets; nothing spills."""
    usage = compiled.tool("cuobjdump", "-res-usage", folder=tmp_path)
    found = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    assert found["STACK"] == found["LOCAL"] == 0
    assert found["REG"] <= (168 if compiled.jagged else 128)
    assert compiled.shared <= 16 << 10


@needs_triton
def test_rows_are_read_by_vectors(compiled: Compiled) -> None:
    """Of 16 bytes, or of 8 where elements are bytes."""
    words = 2 if compiled.itemsize == 1 else 4
    assert len(re.findall(rf"ld\.global\.v{words}\.b32", compiled.ptx)) >= UNROLL
    # And by single elements in the other half of the kernel, for odd widths.
    assert re.search(rf"ld\.global\.b{8 * compiled.itemsize}\b", compiled.ptx)


@needs_triton
def test_a_thread_has_several_rows_in_flight(compiled: Compiled, tmp_path: Path) -> None:
    """The first rows are all asked for before anything is added up."""
    listing = compiled.tool("nvdisasm", "-c", folder=tmp_path)
    load = "LDG.E.64" if compiled.itemsize == 1 else "LDG.E.128"
    seen = re.findall(rf"{load}|\bF(?:ADD|FMA|MUL)2?\b", listing)
    arithmetic = next(i for i, op in enumerate(seen) if op != load)
    assert arithmetic >= UNROLL, seen[:20]


@needs_triton
def test_addresses_have_64_bits(compiled: Compiled) -> None:
    """Every offset into the storage, the ids and the result is int64: 2^31 elements are 8 GB."""
    pattern = r"tt\.addptr [^:]*: tensor<[^,]*x!tt\.ptr<\w+>>, tensor<[\dx]+x(i\d+)>"
    widths = re.findall(pattern, compiled.ttir)
    assert len(widths) >= 10
    assert set(widths) == {"i64"}
    assert not re.search(r"muli [^:]*: tensor<\S*xi32>", compiled.ttir)


def test_without_triton_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from recreplay.runtime.errors import EnvironmentMismatchError
    from recreplay.runtime.grouped_lookup import grouped_lookup

    monkeypatch.setitem(sys.modules, "recreplay.runtime.grouped_kernel", None)
    made = build([Feature(5, 4, 2)], 2, 1, seed=0)
    with pytest.raises(
        EnvironmentMismatchError, match=r"^grouped_lookup compiles its kernel by Tr"
    ):
        grouped_lookup._init_fn(*made.arguments())
