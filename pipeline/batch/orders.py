"""What a batch may ask of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from pipeline.batch.plan import BatchInput


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOrder:
    """Go on with a file in order.

    Attributes:
        item: the input.
        until: pause when so many of its segments are finished; None goes on to the end.
    """

    item: BatchInput
    until: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoutOrder:
    """Find the borders of a file's segments, see `pipeline.batch.ahead.scout_file`."""

    item: BatchInput


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectOrder:
    """Run the networks on one segment, see `pipeline.batch.ahead.detect_segment`.

    Attributes:
        item: the input.
        number: of the segment.
        start: where it begins; None is the start of the file.
    """

    item: BatchInput
    number: int
    start: dict[str, Any] | None


Order: TypeAlias = FileOrder | ScoutOrder | DetectOrder
