"""The light half: load an artifact and replay it. Imports torch only when an artifact is loaded."""

from recreplay.runtime import errors
from recreplay.runtime.engine import Runtime
from recreplay.runtime.errors import InputError, RecReplayError
from recreplay.runtime.funnel import Funnel, Ranking, Stage
from recreplay.runtime.offload import Offload
from recreplay.runtime.repository import ModelRepository
from recreplay.runtime.serving import Serving

__all__ = [
    "Funnel",
    "InputError",
    "ModelRepository",
    "Offload",
    "Ranking",
    "RecReplayError",
    "Runtime",
    "Serving",
    "Stage",
    "errors",
]
