"""Segment compilers: from segment code to a package in the artifact."""

from recreplay.capture.compilers.base import COMPILERS, SegmentCompiler, get_compiler

__all__ = ["COMPILERS", "SegmentCompiler", "get_compiler"]
