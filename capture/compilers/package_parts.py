"""Parts that are the same in many packages: compiled once, and linked to each.

One is torch's container of models with its C interface, and what reads the name of its device by a
regular expression, of which every package has the same. The others are our own functions, of which
a package has those that it calls. Each takes the C++ compiler seconds, and the rest of a package
one or two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from recreplay.capture.compilers.package_cache import PackageCache

# What GNU's library compiles regular expressions and runs them with.
_EXPRESSIONS = """
#ifdef __GLIBCXX__
#include <regex>
{0} template class std::__detail::_Compiler<std::regex_traits<char>>;
#if _GLIBCXX_RELEASE >= 12
{0} template bool std::__detail::__regex_algo_impl(
    std::string::const_iterator, std::string::const_iterator, std::smatch &, const std::regex &,
    std::regex_constants::match_flag_type, std::__detail::_RegexExecutorPolicy, bool);
#endif
#endif
"""
_DECLARED, _DEFINED = _EXPRESSIONS.format("extern"), _EXPRESSIONS.format("")
_MODEL = "\n#include <torch/csrc/inductor/aoti_runtime/model.h>\n"


class PackageParts:
    """Made once in a process that compiles, whose packages are compiled without their interface
    then, and linked to one. Where the interface cannot be compiled by itself, they are compiled
    whole."""

    def __init__(self, edit: Callable[[str], str], scratch: Path) -> None:
        """`edit`: what is done to the sources of packages; `scratch`: where files may be put."""
        from torch._inductor import codecache, cpp_builder

        folder = Path(torch._inductor.__file__).parent / "codegen" / "aoti_runtime"
        self._interface = edit((folder / "interface.cpp").read_text())
        self._objects = _Objects(scratch)
        self._linked: dict[str, list[str]] = {}  # what goes with a package's object file, by paths
        self._called: Sequence[str] = ()
        parts = self

        class Builder(cpp_builder.CppBuilder):
            def __init__(
                self, name: str, sources: str | list[str], BuildOption: Any, output_dir: str = ""
            ) -> None:
                if isinstance(sources, list):
                    sources = [*sources, *(o for s in sources for o in parts._linked.get(s, ()))]
                elif sources.endswith(".wrapper.cpp"):
                    sources = parts._divide(sources, BuildOption, f"{output_dir}/{name}.o")
                super().__init__(name, sources, BuildOption, output_dir)

        codecache.CppBuilder = Builder  # type: ignore[attr-defined]

    @contextmanager
    def calling(self, functions: Sequence[str]) -> Iterator[None]:
        """Packages that are made meanwhile are linked to what these sources define, too."""
        self._called = functions
        try:
            yield
        finally:
            self._called = ()

    def _divide(self, wrapper: str, options: Any, target: str) -> str:
        """The source to compile in place of a package's, for the object file `target`."""
        from torch._inductor.exc import CppCompileError

        made = [self._objects.get(source, options) for source in self._called]
        self._linked[target] = [str(path) for path in made]
        includes, found, model = Path(wrapper).read_text().partition(self._interface)
        if not found:
            return wrapper
        try:
            interface = self._objects.get(includes + self._interface + _DEFINED, options)
        except CppCompileError:
            return wrapper
        self._linked[target].append(str(interface))
        # Not in its place: inductor finds that again and would not write it anew.
        left = interface.parent / Path(wrapper).name
        left.write_text(includes + _MODEL + _DECLARED + model)
        return str(left)


class _Objects:
    """Object files of sources, which later processes find as they find packages."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._made: dict[tuple[str, str], Path | Exception] = {}

    def get(self, source: str, options: Any) -> Path:
        """The object file of `source`, by inductor's options of a build. Raises inductor's
        CppCompileError."""
        from torch._inductor.cpp_builder import CppBuilder
        from torch._inductor.exc import CppCompileError

        folder = self._scratch / f"part{len(self._made)}"
        written = folder / "part.cpp"
        builder = CppBuilder(written.stem, str(written), options, str(folder))
        told = builder.get_command_line().replace(str(folder), "")
        if (source, told) not in self._made:
            cache = PackageCache({}, {"command": told})
            made: Path | Exception = folder / "part.o"
            if not cache.take({"part": source}, folder):
                folder.mkdir()
                written.write_text(source)
                try:
                    builder.build()
                    cache.keep({"part": source}, folder)
                except CppCompileError as error:
                    made = error
            self._made[source, told] = made
        found = self._made[source, told]
        if isinstance(found, Exception):
            raise found
        return found
