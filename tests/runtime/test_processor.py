"""What is asked of a processor before packages run on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from recreplay.runtime import processor

X86 = "fpu sse sse2 ssse3 fma cx16 sse4_1 sse4_2 popcnt avx avx2 abm sse4a avx512f avx512_bf16"
MORE = "avx512_vp2intersect gfni amx_tile ibrs"


@pytest.mark.parametrize(
    ("text", "name", "sets"),
    [
        (
            f"processor\t: 0\nmodel name\t: A Xeon\nflags\t\t: {X86} {MORE}\nvmx flags\t: vnmi\n",
            "A Xeon",
            "abm amx_tile avx avx2 avx512_bf16 avx512f fma gfni popcnt sse4_1 sse4_2",
        ),
        (
            "processor\t: 0\nFeatures\t: fp asimd evtstrm aes atomics fphp sve i8mm bf16\n",
            "",
            "asimd atomics bf16 fp fphp i8mm sve",
        ),
    ],
    ids=["x86", "ARM"],
)
def test_instructions_that_compilers_use_unasked_are_counted(
    text: str, name: str, sets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VP2INTERSECT and SSE4a, which one maker's have and another's do not, are not."""
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    assert processor.processor() == name
    assert processor.instruction_sets() == sets.split()


def test_where_linux_does_not_say_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    assert processor.instruction_sets() == []
