"""The part that is the same in every package: compiled once, and linked to each.

That is torch's container of models with its C interface, and what compiles the regular expression
that a model reads the name of its device with. They take the C++ compiler four seconds, and the
rest of a package two.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recreplay.capture.compilers.package_cache import PackageCache

# What GNU's library compiles regular expressions with.
_EXPRESSIONS = """
#ifdef __GLIBCXX__
#include <regex>
{} template class std::__detail::_Compiler<std::regex_traits<char>>;
#endif
"""
_DECLARED, _DEFINED = _EXPRESSIONS.format("extern"), _EXPRESSIONS.format("")
_MODEL = "\n#include <torch/csrc/inductor/aoti_runtime/model.h>\n"


def compile_interface_once(edit: Callable[[str], str], scratch: Path) -> None:
    """Have every package of this process compiled without its interface, and linked to one.

    `edit`: what is done to the sources of packages. `scratch`: where files may be put. Where the
    interface cannot be compiled by itself, packages are compiled whole.
    """
    from torch._inductor import codecache, cpp_builder

    folder = Path(torch._inductor.__file__).parent / "codegen" / "aoti_runtime"
    interface = edit((folder / "interface.cpp").read_text())
    objects = _Objects(scratch)
    linked: dict[str, str] = {}  # the object file that goes with a package's, both by path

    class Builder(cpp_builder.CppBuilder):
        def __init__(
            self, name: str, sources: str | list[str], BuildOption: Any, output_dir: str = ""
        ) -> None:
            if isinstance(sources, list):
                sources = [*sources, *(linked[s] for s in sources if s in linked)]
            elif sources.endswith(".wrapper.cpp"):
                sources = divided(sources, BuildOption, f"{output_dir}/{name}.o")
            super().__init__(name, sources, BuildOption, output_dir)

    def divided(wrapper: str, options: Any, target: str) -> str:
        """The source to compile in place of a package's, for the object file `target`."""
        includes, found, model = Path(wrapper).read_text().partition(interface)
        made = objects.get(includes + interface + _DEFINED, options) if found else None
        if made is None:
            return wrapper
        linked[target] = str(made)
        # Not in its place: inductor finds that again and would not write it anew.
        left = made.parent / Path(wrapper).name
        left.write_text(includes + _MODEL + _DECLARED + model)
        return str(left)

    codecache.CppBuilder = Builder  # type: ignore[attr-defined]


class _Objects:
    """Object files of sources, which later processes find as they find packages."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._made: dict[tuple[str, str], Path | None] = {}

    def get(self, source: str, options: Any) -> Path | None:
        """The object file of `source`, by inductor's options of a build; None if it does not
        compile."""
        from torch._inductor.cpp_builder import CppBuilder
        from torch._inductor.exc import CppCompileError

        folder = self._scratch / f"interface{len(self._made)}"
        written = folder / "interface.cpp"
        builder = CppBuilder(written.stem, str(written), options, str(folder))
        told = builder.get_command_line().replace(str(folder), "")
        if (source, told) not in self._made:
            cache = PackageCache({}, {"command": told})
            made: Path | None = folder / "interface.o"
            if not cache.take({"interface": source}, folder):
                folder.mkdir()
                written.write_text(source)
                try:
                    builder.build()
                    cache.keep({"interface": source}, folder)
                except CppCompileError:
                    made = None
            self._made[source, told] = made
        return self._made[source, told]
