"""Libraries in the place of NVIDIA's, so that torch's CUDA build runs where there is no GPU.

Each folder `lib*` beside this file is the source of one of them. What torch asks of a library and
no source has is refused when it is called, by name.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
# The library of a name, by its beginning, where torch's libraries do not say.
_UNVERSIONED = {
    "nccl": "libnccl.so.2",
    "cusparseLt": "libcusparseLt.so.0",
    "nvshmem": "libnvshmem_host.so.3",
    "cuFile": "libcufile.so.0",
    "cu": "libcuda.so.1",
}


def build(out: Path, torch_libraries: Path, cuda_include: Path) -> None:
    """All libraries that the ones in `torch_libraries` link to, into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for library, names in _asked(torch_libraries).items():
        sources = sorted((HERE / library.partition(".")[0]).glob("*.cpp"))
        told = {w for source in sources for w in re.findall(r"\w+(?=\()", source.read_text())}
        rest = out / f"{library}.cpp"
        rest.write_text(_refusing(library, sorted(set(names) - told)))
        _link(out / library, [*sources, rest], set(names.values()) - {""}, cuda_include)
    (out / "built").touch()


def _asked(torch_libraries: Path) -> dict[str, dict[str, str]]:
    """For each library that torch links to: the names it is asked for, with their versions."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for file in torch_libraries.glob("*.so"):
        needed = _output("readelf", "-d", file)
        for library in re.findall(r"NEEDED.*\[(lib(?:cu|nccl|nv)\w*\.so\.\d+)\]", needed):
            found[library]  # made, if only to be there
        for name, version in re.findall(
            r" [Uw] (\w+)(?:@(\S+))?\n", _output("nm", "-D", "--undefined-only", file)
        ):
            begins = (b for b in _UNVERSIONED if name.startswith(b))
            library = version if version in found else _UNVERSIONED.get(next(begins, ""), "")
            if library and (version in found or not version.startswith(("lib", "GLIBC", "GCC"))):
                found[library][name] = version
    return found


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _refusing(library: str, names: list[str]) -> str:
    functions = "".join(f'int {name}(void) {{ return refused("{name}"); }}\n' for name in names)
    return f"""#include <stdio.h>
[[maybe_unused]] static int refused(const char *name) {{
    fprintf(stderr, "emulated CUDA: %s of {library} has no meaning here\\n", name);
    return 801;
}}
extern "C" {{
{functions}}}
"""


def _link(out: Path, sources: list[Path], versions: set[str], cuda_include: Path) -> None:
    script = out.with_name(f"{out.name}.map")
    script.write_text("".join(f"{v} {{ global: *; }};\n" for v in sorted(versions)))
    flags = ["-std=c++17", "-O1", "-Wall", f"-I{cuda_include}", "-fPIC", "-shared"]
    flags += [f"-Wl,--version-script={script}"] if versions else []
    command = ["g++", *flags, *map(str, sources), f"-Wl,-soname,{out.name}", "-o", str(out)]
    subprocess.run(command, check=True)
