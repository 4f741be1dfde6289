"""Watch zones: who enters, leaves, or stays, without flicker at the border.

Somebody is where the feet are: the middle of the ankles that are seen, else the middle of the lower edge of the box.
Times are the stream's own (`Frame.pts_s`), so a recorded video gives the same events at any speed.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from typing import Final

import cv2

from kernels.coordinates import F32, U8
from pipeline.messages import Frame, FrameResult
from pipeline.person import Person
from pipeline.zones.event import EventKind, ZoneEvent
from pipeline.zones.shape import Zone

LOST_S: Final = 2.0  # unseen for so long: gone. As long as ids are remembered
ROUNDING_S: Final = 1e-6  # times are sums of frame lengths
ANKLES: Final = (15, 16)
LINE_COLOR: Final = (255, 214, 10)


def foot_point(person: Person) -> tuple[float, float] | None:
    """Where somebody stands, x, y in px; None when there is neither an ankle nor a box."""
    ankles = [person.keypoints[joint] for joint in ANKLES if person.joint_visible[joint]]
    if ankles:
        return float(sum(a[0] for a in ankles)) / len(ankles), float(sum(a[1] for a in ankles)) / len(ankles)
    x, y, width, height = person.bbox
    if width <= 0 and height <= 0:
        return None
    return x + (width - 1) / 2, y + height - 1


@dataclass(slots=True, kw_only=True)
class _Visit:
    """One person at one zone: on the way in, inside, or on the way out."""

    began_s: float  # first seen inside
    seen_s: float  # last seen at all
    outside_s: float | None = None  # since when outside; None while inside
    entered: bool = False
    dwelt: bool = False
    point: tuple[float, float] = (0.0, 0.0)


@dataclass(slots=True)
class _Place:
    """A zone in one stream."""

    visits: dict[int, _Visit] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    outline: F32 | None = None

    @property
    def inside(self) -> int:
        return sum(visit.entered for visit in self.visits.values())


class ZoneWatcher:
    """All zones of one stream. Results come in the order of their times."""

    def __init__(self, zones: tuple[Zone, ...], *, stream: int = 0, run: str | None = None) -> None:
        """Nobody is anywhere yet.

        Args:
            zones: of all streams; those of others are left out.
            stream: which one this is.
            run: first part of the events' keys; random by default.
        """
        self.zones = tuple(zone for zone in zones if not zone.streams or stream in zone.streams)
        self._stream = stream
        self._run = run if run is not None else secrets.token_hex(8)
        self._places = [_Place() for _ in self.zones]
        self._count = 0
        self._clip: int | None = None

    def watch(self, result: FrameResult) -> tuple[ZoneEvent, ...]:
        """Events of one more frame, in the order of zones and people."""
        frame = result.frame
        if frame.clip != self._clip:  # ids begin anew
            self._clip = frame.clip
            self._places = [_Place() for _ in self.zones]
        feet = {person.id: point for person in result.people if (point := foot_point(person)) is not None}
        events: list[ZoneEvent] = []
        for zone, place in zip(self.zones, self._places, strict=True):
            self._watch_zone(zone, place, feet, frame, events)
        return tuple(events)

    def inside(self) -> dict[str, int]:
        """How many people are in each zone."""
        return {zone.name: place.inside for zone, place in zip(self.zones, self._places, strict=True)}

    def draw(self, picture: U8) -> None:
        """Outline, name and count of each zone onto (H, W, 3) uint8 RGB."""
        height, width = picture.shape[:2]
        for zone, place in zip(self.zones, self._places, strict=True):
            outline = zone.outline(height, width).round().astype("int32")
            thickness = max(1, round(min(height, width) / 360))
            cv2.polylines(
                picture, [outline], isClosed=True, color=LINE_COLOR, thickness=thickness, lineType=cv2.LINE_AA
            )
            x, y = (int(value) for value in outline[:, 0].min(axis=0))
            text = f"{zone.name}: {place.inside}".encode("ascii", "replace").decode()
            (text_px, high_px), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, 0.45, 1)
            left, top = max(x, 0), max(y, 0)
            cv2.rectangle(picture, (left, top), (left + text_px + 8, top + high_px + 9), (16, 16, 16), cv2.FILLED)
            at = (left + 4, top + high_px + 4)
            cv2.putText(picture, text, at, cv2.FONT_HERSHEY_DUPLEX, 0.45, LINE_COLOR, 1, cv2.LINE_AA)

    def _watch_zone(
        self, zone: Zone, place: _Place, feet: dict[int, tuple[float, float]], frame: Frame, events: list[ZoneEvent]
    ) -> None:
        now_s, size = frame.pts_s, (frame.height, frame.width)
        if place.outline is None or place.size != size:
            place.outline, place.size = zone.outline(*size), size
        for person_id, foot in feet.items():
            visit = place.visits.get(person_id)
            distance_px = zone.distance(place.outline, foot)
            margin_px = zone.margin * frame.height if visit is not None and visit.entered else 0.0
            is_inside = distance_px >= -margin_px
            if visit is None:
                if not is_inside:
                    continue
                visit = place.visits[person_id] = _Visit(began_s=now_s, seen_s=now_s)
            visit.seen_s = now_s
            visit.point = ((foot[0] + 0.5) / frame.width, (foot[1] + 0.5) / frame.height)
            if is_inside:
                visit.outside_s = None
            elif visit.outside_s is None:
                visit.outside_s = now_s
        for person_id, visit in list(place.visits.items()):
            self._move_on(zone, place, person_id, visit, now_s, events)

    def _move_on(
        self, zone: Zone, place: _Place, person_id: int, visit: _Visit, now_s: float, events: list[ZoneEvent]
    ) -> None:
        is_lost = now_s - visit.seen_s >= LOST_S - ROUNDING_S
        out_s = None if visit.outside_s is None else now_s - visit.outside_s
        if not visit.entered:
            if out_s is not None or now_s > visit.seen_s:  # went before it counted, or was not seen all the time
                del place.visits[person_id]
            elif now_s - visit.began_s >= zone.enter_s - ROUNDING_S:
                visit.entered = True
                events.append(self._event("enter", zone, place, person_id, visit, now_s - visit.began_s))
            if not visit.entered:
                return
        if is_lost or (out_s is not None and out_s >= zone.leave_s - ROUNDING_S):
            del place.visits[person_id]
            until_s = visit.seen_s if visit.outside_s is None else visit.outside_s
            seconds = until_s - visit.began_s
            events.append(self._event("leave", zone, place, person_id, visit, seconds, lost=visit.outside_s is None))
        elif zone.dwell_s is not None and not visit.dwelt and visit.outside_s is None and now_s == visit.seen_s:
            if now_s - visit.began_s < zone.dwell_s - ROUNDING_S:
                return
            visit.dwelt = True
            events.append(self._event("dwell", zone, place, person_id, visit, now_s - visit.began_s))

    def _event(
        self,
        kind: EventKind,
        zone: Zone,
        place: _Place,
        person_id: int,
        visit: _Visit,
        seconds: float,
        *,
        lost: bool = False,
    ) -> ZoneEvent:
        self._count += 1
        return ZoneEvent(
            key=f"{self._run}-{self._stream}-{self._count}",
            kind=kind,
            zone=zone.name,
            person_id=person_id,
            seconds=seconds,
            point=visit.point,
            lost=lost,
            inside=place.inside,
        )


class ZoneStage:
    """Adds `FrameResult.events`, and the zones to drawn pictures."""

    name = "zones"

    def __init__(self, zones: tuple[Zone, ...]) -> None:
        self._zones = zones
        self._run = secrets.token_hex(8)
        self._watchers: dict[int, ZoneWatcher] = {}

    def open(self) -> None:
        """Watchers begin with the first frame of their stream."""

    def process(self, result: FrameResult) -> FrameResult:
        stream = result.frame.stream
        watcher = self._watchers.get(stream)
        if watcher is None:
            watcher = self._watchers[stream] = ZoneWatcher(self._zones, stream=stream, run=self._run)
        events = watcher.watch(result)
        if result.drawn is not None:
            watcher.draw(result.drawn)
        return replace(result, events=events)

    def close(self) -> None:
        """Nothing is held."""
