"""The offline half: from a model to an artifact."""

from recreplay.capture.declared import Jagged
from recreplay.capture.ingest import load_pt2
from recreplay.capture.onnx_import import load_onnx
from recreplay.capture.pipeline import (
    DEFAULT_BUCKETS,
    DEFAULT_REWRITES,
    DEFAULT_STRATEGY,
    REWRITES,
    capture,
)

__all__ = [
    "DEFAULT_BUCKETS",
    "DEFAULT_REWRITES",
    "DEFAULT_STRATEGY",
    "REWRITES",
    "Jagged",
    "capture",
    "load_onnx",
    "load_pt2",
]
