"""Every error RecReplay raises on purpose: one base, one class per kind of mistake.

Messages follow one form: what happened, where (input, row, operator, file), what was expected and
what was got, and what to do about it.
"""

from __future__ import annotations


class RecReplayError(Exception):
    """Base of every error raised by RecReplay."""


class InputError(RecReplayError, ValueError):
    """A request that the captured model cannot answer. The runtime goes on serving."""


class InputNameError(InputError):
    """An input is missing, or one was given that the model does not have."""


class InputTypeError(InputError):
    """An input is not a numeric array."""


class InputDtypeError(InputError):
    """An input has a dtype that cannot be widened to the captured one without loss."""


class InputShapeError(InputError):
    """An input has the wrong rank, width or number of rows."""


class EmptyBatchError(InputError):
    """A request of zero rows."""


class IdRangeError(InputError):
    """An id is negative or not below the number of rows of the table it looks up.

    `row`: of the request, where it is known.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class BorrowError(RecReplayError):
    """Staging memory was asked for, or used, where it cannot be had."""


class OffsetsError(InputError):
    """Offsets or lengths do not divide the values that they come with."""


class CapacityError(InputError):
    """One row, or the user side, has more jagged values than the largest bucket holds, or a request
    that cannot be cut more rows."""


class CaptureError(RecReplayError):
    """The model, or an argument of `capture`, cannot be captured."""


class UnsupportedModelError(CaptureError):
    """The model has an operator or a shape that no static graph can hold."""


class CompilerError(CaptureError):
    """A segment compiler is not usable on this machine, or failed on a segment."""


class ReplayError(RecReplayError):
    """A replay failed in the middle. On a CPU the runtime goes on; a CUDA context may not."""


class ParityError(RecReplayError):
    """A replay does not equal the eager model within tolerance."""


class ArtifactError(RecReplayError):
    """An artifact cannot be used. Subclasses say why."""


class ArtifactNotFoundError(ArtifactError):
    """The path holds no artifact."""


class ArtifactCorruptError(ArtifactError):
    """A file of the artifact is missing, torn or edited."""


class ArtifactVersionError(ArtifactError):
    """The artifact's format is not one that this version reads."""


class EnvironmentMismatchError(ArtifactError):
    """The artifact was captured for another machine, device or torch."""


class RuntimeClosedError(RecReplayError):
    """The runtime was closed."""


class LanesLostError(RecReplayError):
    """Every lane has failed and none could be made anew."""


class Overloaded(RecReplayError):
    """The queue is full: the request was refused before anything was done for it."""


class DeadlineExceeded(RecReplayError):
    """The request waited longer than its deadline, and was not replayed."""


class FunnelError(RecReplayError):
    """The stages of a funnel do not go together."""


class OffloadError(RecReplayError):
    """Two runtimes are not of one model."""


class RefreshError(RecReplayError, ValueError):
    """New weights do not fit the captured ones; nothing was written."""


class RepositoryError(RecReplayError):
    """A model repository, or a model in it, cannot be used as asked."""


class ModelNotFoundError(RepositoryError):
    """The repository has no such model or version, or has not loaded it."""
