"""What can go wrong in a run, and the exit code each kind ends with.

PipelineError (Exception)           1   a bug
├── SettingsError (ValueError)      2   a flag or an output that cannot be
├── SourceError (OSError)           3   the input cannot be opened or read
├── SinkError (OSError)             5   an output cannot be written
└── StageError (RuntimeError)       1   a stage failed on a frame; 4 when its engine did
EngineError (from `engines`)        4   a model folder or a network that cannot be used
"""

from __future__ import annotations

from engines import EngineError

EXIT_OK = 0
EXIT_BUG = 1
EXIT_SETTINGS = 2
EXIT_SOURCE = 3
EXIT_ENGINE = 4
EXIT_SINK = 5
EXIT_PARTIAL = 10  # of a batch: some inputs are not done; its report says which and why


class PipelineError(Exception):
    """Base of all errors that the pipeline raises on purpose. The message is one line for a person."""

    exit_code = EXIT_BUG


class SettingsError(PipelineError, ValueError):
    """An option has a value that cannot be used, or two options do not go together."""

    exit_code = EXIT_SETTINGS


class SourceError(PipelineError, OSError):
    """The input is missing, not a picture or video, or stopped giving frames."""

    exit_code = EXIT_SOURCE


class SinkError(PipelineError, OSError):
    """An output cannot be written: it exists, its folder is missing, the disk is full, the codec refused."""

    exit_code = EXIT_SINK


class StageError(PipelineError, RuntimeError):
    """A stage failed.

    Attributes:
        stage: name of the stage.
        frame_index: number of the frame in its source, None when no frame was in work.
    """

    def __init__(self, stage: str, frame_index: int | None, cause: BaseException) -> None:
        where = f"at frame {frame_index}" if frame_index is not None else "outside a frame"
        text = str(cause).strip() or type(cause).__name__
        kind = "" if isinstance(cause, EngineError) else f"{type(cause).__name__}: "
        super().__init__(f"stage {stage} failed {where}: {kind}{text}")
        self.stage = stage
        self.frame_index = frame_index
        self.exit_code = exit_code_of(cause)


def exit_code_of(error: BaseException) -> int:
    """Exit code that a process ends with when ``error`` ended its run."""
    if isinstance(error, PipelineError):
        return error.exit_code
    return EXIT_ENGINE if isinstance(error, EngineError) else EXIT_BUG
