"""A peer in a process of its own, for those that record CUDA graphs.

torch's graph trees free and clear memory that graphs recorded beside them still use, so they cannot
share a process with ours. The process measures itself and waits between its turns, so that
contenders alternate as they do within one process.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from recreplay.runtime.errors import RecReplayError
from recreplay.tools.bench.peers.base import Arrays, Subject


class ProcessContender:
    """`name` of a peer, loaded in a new process from what made the model here."""

    def __init__(self, name: str, subject: Subject, patience: float | None = None) -> None:
        """`patience`: seconds to load, and to prepare; then it is ended. None: any time."""
        self.name = name
        self._patience = patience
        self._idle = True  # it waits to be asked
        spawn = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        self._pipe, theirs = spawn.Pipe()
        target = subject.target
        given = [
            f"{key}={value if isinstance(value, str) else repr(value)}"
            for key, value in target.arguments.items()
        ]
        made = (target.text, given, subject.artifact, subject.device, subject.folder / f"of_{name}")
        self._process = spawn.Process(target=_serve, args=(theirs, name, *made), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._ask("load", None, self._patience)
        except BaseException:
            self.close()
            raise

    def prepare(self, requests: Sequence[Arrays]) -> None:
        self._ask("prepare", list(requests), self._patience)

    def time(self, index: int) -> int:
        return int(self._ask("time", index))

    def answer(self, index: int) -> Arrays:
        arrays: Arrays = self._ask("answer", index)
        return arrays

    def close(self) -> None:
        self._pipe.close()  # which ends the other side's wait
        self._process.join(timeout=30 if self._idle else 0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, word: str, value: Any, patience: float | None = None) -> Any:
        try:
            self._pipe.send((word, value))
            self._idle = False
            if not self._pipe.poll(patience):
                self._process.kill()
                raise RecReplayError(f"peer {self.name!r} did not {word} in {patience:.0f} s")
            ok, found = self._pipe.recv()
            self._idle = True
        except (EOFError, OSError) as error:
            raise RecReplayError(
                f"the process of peer {self.name!r} ended during {word}"
            ) from error
        if not ok:
            raise RecReplayError(found)
        return found


def _serve(
    pipe: Connection,
    name: str,
    text: str,
    given: list[str],
    artifact: Path,
    device: str,
    work: Path,
) -> None:
    import torch

    from recreplay.tools.bench.peers import PEERS
    from recreplay.tools.bench.peers.contender import LocalContender
    from recreplay.tools.target import load_target

    torch.set_num_threads(1)
    contender: LocalContender | None = None
    while True:
        try:
            word, value = pipe.recv()
        except EOFError:
            break
        try:
            if word == "load":
                work.mkdir()
                target = load_target(text, given)
                subject = Subject(target, artifact, device, work)
                contender = LocalContender(PEERS[name], subject)
                found: Any = None
            else:
                found = getattr(contender, word)(value)
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))
        else:
            pipe.send((True, found))
    if contender is not None:
        contender.close()
