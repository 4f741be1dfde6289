"""What happens at a zone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pipeline.messages import Frame

EventKind = Literal["enter", "leave", "dwell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneEvent:
    """A person entered a zone, left it, or has been in it for a while.

    Attributes:
        key: different for every event of every run: whoever gets one twice can tell.
        kind: what happened.
        zone: name of the zone.
        person_id: who, as in `pipeline.person.Person.id`.
        seconds: of the stream's time that the person has been inside.
        point: x, y of the person's foot point as shares of the picture's width and height; the last one seen.
        lost: of a ``leave``: the person was not seen to go, only not found any more.
        inside: how many people are in the zone behind this event.
    """

    key: str
    kind: EventKind
    zone: str
    person_id: int
    seconds: float
    point: tuple[float, float]
    lost: bool
    inside: int

    def to_dict(self) -> dict[str, Any]:
        """The entry of ``events`` in a JSON line; see docs/jsonl.md."""
        return {
            "key": self.key,
            "kind": self.kind,
            "zone": self.zone,
            "id": self.person_id,
            "seconds": round(self.seconds, 3),
            "point": [round(share, 4) for share in self.point],
            "lost": self.lost,
            "inside": self.inside,
        }

    def to_message(self, frame: Frame) -> dict[str, Any]:
        """The same for who sees only the event: also of which stream and frame it is."""
        return {
            **self.to_dict(),
            "stream": frame.stream,
            "source": frame.source,
            "frame": frame.index,
            "pts_s": round(frame.pts_s, 6),
        }
