"""Work that is not left half done, however often somebody presses Ctrl-C meanwhile."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable


def on_a_thread(work: Callable[[], None]) -> None:
    """Do it on a thread of its own, which signals do not interrupt and which knows none of the
    caller's modes; return, or raise what it raised, when it has ended.

    An interrupt of the caller is raised then, in place of what came of the work.
    """
    import torch

    ended = threading.Lock()
    ended.acquire()
    failed: list[BaseException] = []
    threads = torch.get_num_threads()  # which a new thread does not inherit

    def run() -> None:
        try:
            torch.set_num_threads(threads)
            work()
        except BaseException as error:
            failed.append(error)
        finally:
            finished.append(True)
            ended.release()

    interrupted: BaseException | None = None
    started: list[int] = []
    finished: list[bool] = []
    while not finished:
        try:
            if not started:
                # In one call of C, between whose halves no interrupt comes.
                started.extend(map(_thread.start_new_thread, (run,), ((),)))
            ended.acquire()
        except BaseException as error:
            if not started:
                raise
            interrupted = error
    if interrupted is not None:
        raise interrupted
    if failed:
        raise failed[0]


def not_interrupted(work: Callable[[], None]) -> None:
    """The same where an interrupt may come: Python raises them on the main thread only."""
    if threading.current_thread() is threading.main_thread():
        on_a_thread(work)
    else:
        work()
