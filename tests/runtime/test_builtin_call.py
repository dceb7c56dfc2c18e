"""C functions as builtins of Python's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from recreplay.capture.compilers.c_library import build_c_library


def test_what_calls_a_library_may_outlive_it(tmp_path: Path) -> None:
    """Python reads where a builtin's function is when the builtin goes; in a process of its own,
    which that would end."""
    build_c_library("fill.c", tmp_path / "fill.so")
    script = f"""
import gc
from pathlib import Path
from filling import Staged, bucket
from recreplay.runtime.native_fill import FillLibrary
path = Path({str(tmp_path / "fill.so")!r})
Staged.library = FillLibrary(path)
staged = Staged(bucket(2, [("a", "int64", ())]), [])
fill = staged.filler.prepare(1).lend((staged.views["a"][:1],))
assert fill() == 0
Staged.library.close()
assert str(path) not in Path("/proc/self/maps").read_text()
del fill, staged
gc.collect()
print("still here")
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "still here\n", done.stderr
