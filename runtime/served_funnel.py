"""A funnel as a version of a model in a repository: `funnel.json`, which names its stages.

    {"stages": [{"artifact": "small.rr", "keep": 512},
                {"artifact": "large.rr", "keep": 64, "score": "click"}]}

`artifact` is a path from the file's own folder; `keep` and `score` are as `Stage` has them, the
score an output; `serving` is what a `serving.json` holds, in place of the model's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.engine import Runtime
from recreplay.runtime.errors import FunnelError
from recreplay.runtime.fill import Check
from recreplay.runtime.funnel import Funnel, Ranking, Stage
from recreplay.runtime.promises import cancel_with, hand_on, new_future
from recreplay.runtime.serving import Serving
from recreplay.runtime.spec import InputSpec, OutputSpec

Array = np.ndarray[Any, Any]
FUNNEL = "funnel.json"
ROWS, SCORES = "rows", "scores"  # what an answer has besides the last stage's outputs
_KEYS = ("artifact", "keep", "score", "serving")


@dataclass(frozen=True, slots=True)
class StageFile:
    """One stage, as `funnel.json` has it."""

    artifact: Path
    keep: int | None
    score: str | None
    serving: Serving | None


def read_funnel(folder: Path) -> list[StageFile]:
    """The stages that `folder/funnel.json` names. Raises FunnelError."""
    path = folder / FUNNEL
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise FunnelError(f"{path} is no funnel: {error}") from error
    stages = data.get("stages") if isinstance(data, dict) else None
    if not isinstance(stages, list) or not stages or {*data} != {"stages"}:
        raise FunnelError(f"{path} is no funnel; expected an object with a list 'stages'")
    return [_stage(path, at, item) for at, item in enumerate(stages)]


def _stage(path: Path, at: int, item: Any) -> StageFile:
    where = f"{path}: stage {at + 1}"
    if not isinstance(item, dict) or not isinstance(item.get("artifact"), str):
        raise FunnelError(f"{where} has no 'artifact'; expected the path of one")
    if unknown := sorted({*item} - {*_KEYS}):
        raise FunnelError(f"{where} has unknown {', '.join(unknown)}; expected {', '.join(_KEYS)}")
    score = item.get("score")
    if score is not None and not isinstance(score, str):
        raise FunnelError(f"{where} has the score {score!r}; expected the name of an output")
    serving = item.get("serving")
    options = None if serving is None else Serving.from_json(serving, f"{where}: serving")
    return StageFile(path.parent / item["artifact"], item.get("keep"), score, options)


class ServedFunnel:
    """A funnel and the runtimes of its stages, loaded and closed as one; it answers as a `Runtime`
    does, by arrays of the best rows: `rows` `[k]` of the request, `scores` `[k]` and the outputs
    `[k, ...]` of the last stage."""

    def __init__(self, stages: Mapping[str, Stage]) -> None:
        """Stages by name, each with a `Runtime` that is closed with the funnel.

        Raises FunnelError where they do not go together.
        """
        self._funnel = Funnel(list(stages.values()))
        self.stages: dict[str, Runtime] = {}
        for name, stage in stages.items():
            assert isinstance(stage.runtime, Runtime)
            self.stages[name] = stage.runtime
        *_, last = stages.values()
        outputs = {spec.name: spec for spec in last.runtime.manifest.outputs}
        if taken := sorted({ROWS, SCORES} & outputs.keys()):
            raise FunnelError(
                f"the last stage has an output {taken[0]!r}, as the answer of a funnel has; name "
                "it otherwise in the model and capture it again"
            )
        assert last.score is None or isinstance(last.score, str)
        score = outputs[last.score or next(iter(outputs))]
        self.inputs: tuple[InputSpec, ...] = self._funnel.inputs
        self.outputs: tuple[OutputSpec, ...] = (
            OutputSpec(ROWS, "int64", ()),
            OutputSpec(SCORES, score.dtype, ()),
            *outputs.values(),
        )

    @classmethod
    def load(cls, folder: Path, device: str | None, check: Check, serving: Serving) -> ServedFunnel:
        """Load the stages of `folder/funnel.json`; `device` is for those that were captured for its
        kind, `serving` for those that do not say how they are served."""
        with ExitStack() as opened:
            stages: dict[str, Stage] = {}
            for at, one in enumerate(read_funnel(folder)):
                kind = open_artifact(one.artifact).manifest.device
                runtime = Runtime.load(
                    one.artifact,
                    device=device if device and device.partition(":")[0] == kind else None,
                    check=check,
                    serving=one.serving or serving,
                )
                opened.callback(runtime.close)
                stages[f"{at + 1}-{one.artifact.stem}"] = Stage(runtime, one.keep, one.score)
            funnel = cls(stages)
            opened.pop_all()
            return funnel

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """`Funnel.run`."""
        return _arrays(self._funnel.run(inputs))

    def submit(
        self, inputs: Mapping[str, Any], *, deadline_us: int | None = None
    ) -> Future[dict[str, Array]]:
        """`Funnel.submit`."""
        answer: Future[dict[str, Array]] = new_future()
        asked = self._funnel.submit(inputs, deadline_us=deadline_us)

        def answered(asked: Future[Ranking]) -> None:
            if answer.set_running_or_notify_cancel():
                hand_on(asked, answer, _arrays)

        asked.add_done_callback(answered)
        cancel_with(answer, asked)
        return answer

    async def arun(
        self, inputs: Mapping[str, Any], *, deadline_us: int | None = None
    ) -> dict[str, Array]:
        """`Funnel.arun`."""
        return _arrays(await self._funnel.arun(inputs, deadline_us=deadline_us))

    def lanes_alive(self) -> int:
        """Of the stage that has the fewest: without any, no request can be answered."""
        return min(runtime.lanes_alive() for runtime in self.stages.values())

    def close(self) -> None:
        """Answer what was accepted, then close the stages. Closing twice is fine."""
        self._funnel.close()
        for runtime in self.stages.values():
            runtime.close()


def _arrays(ranking: Ranking) -> dict[str, Array]:
    return {ROWS: ranking.rows, SCORES: ranking.scores, **ranking.outputs}
