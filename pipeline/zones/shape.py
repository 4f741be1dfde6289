"""A zone, and what ``--zone`` and ``--zones`` may say.

    --zone 'door:0.1,0.5 0.4,0.5 0.4,1 0.1,1'      a name and at least three corners
    --zones FILE                                   {"zones": [{"name": "door", "polygon": [[0.1, 0.5], ...],
                                                    "streams": [0], "enter_s": 0.3, "leave_s": 0.5, "dwell_s": 10,
                                                    "margin": 0.02}, ...]}

Coordinates are shares: (0, 0) is the upper left corner of the picture, (1, 1) the lower right one. A polygon may cross
itself; inside is what an even-odd rule says.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import cv2
import numpy as np

from kernels.coordinates import F32
from pipeline.errors import SettingsError

MAX_ZONES: Final = 64
MAX_CORNERS: Final = 256
MAX_NAME: Final = 64
MAX_FILE_BYTES: Final = 1_000_000
MAX_SECONDS: Final = 86_400.0
MAX_SHOWN: Final = 60
_KEYS: Final = ("name", "polygon", "streams", "enter_s", "leave_s", "dwell_s", "margin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """A polygon that people enter and leave.

    Attributes:
        name: for people.
        corners: x, y of each as shares of the picture, 0..1.
        streams: the streams it is in; empty: all.
        enter_s: somebody has to be inside for so long to have entered.
        leave_s: and outside for so long to have left.
        dwell_s: who is inside for so long gets a ``dwell`` event, once; None: nobody does.
        margin: who is inside is still inside up to so far out, as a share of the picture's height.
    """

    name: str
    corners: tuple[tuple[float, float], ...]
    streams: tuple[int, ...] = ()
    enter_s: float = 0.3
    leave_s: float = 0.5
    dwell_s: float | None = None
    margin: float = 0.02

    def outline(self, height: int, width: int) -> F32:
        """(C, 1, 2) float32: the corners in px of a picture of this size."""
        outline: F32 = (np.array(self.corners, np.float32) * np.array([width, height], np.float32) - 0.5)[:, None]
        return outline

    def distance(self, outline: F32, point: tuple[float, float]) -> float:
        """How far inside a point lies, px; negative: outside.

        Args:
            outline: from `outline`.
            point: x, y in px.
        """
        return float(cv2.pointPolygonTest(outline, point, measureDist=True))


def read_zones(texts: Sequence[str], file: Path | None) -> tuple[Zone, ...]:
    """All zones of a run.

    Args:
        texts: values of ``--zone``.
        file: of ``--zones``.

    Raises:
        SettingsError: one cannot be meant, two have one name, or there are too many.
    """
    zones = [parse_zone(text) for text in texts]
    if file is not None:
        zones += read_zone_file(file)
    if len(zones) > MAX_ZONES:
        raise SettingsError(f"expected at most {MAX_ZONES} zones, got {len(zones)}")
    names = [zone.name for zone in zones]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"zone {_shown(name)}: expected a name of its own for each zone, this one comes twice")
    return tuple(zones)


def parse_zone(text: str) -> Zone:
    """A value of ``--zone``.

    Raises:
        SettingsError: it is no zone.
    """
    where = f"--zone {_shown(text)}"
    name, colon, rest = text.rpartition(":")
    if not colon:
        _refuse(where, "NAME:X,Y X,Y X,Y ...", "no colon")
    corners = []
    for pair in rest.split():
        try:
            x, y = (float(part) for part in pair.split(","))
        except ValueError:
            _refuse(where, "corners such as 0.25,0.5", _shown(pair))
        corners.append([x, y])
    return _zone({"name": name, "polygon": corners}, where)


def read_zone_file(path: Path) -> list[Zone]:
    """The zones of a file.

    Raises:
        SettingsError: it cannot be read, or something in it is no zone.
    """
    where = f"--zones {path}"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(data) > MAX_FILE_BYTES:
        _refuse(where, f"at most {MAX_FILE_BYTES} bytes", "more")
    try:
        document = json.loads(data.decode("utf-8-sig"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{where}: expected JSON ({_shown(str(error))})") from None
    zones = document.get("zones") if isinstance(document, dict) else None
    if not isinstance(zones, list) or not zones or set(document) != {"zones"}:
        _refuse(where, '{"zones": [...]} with at least one zone', _shown_json(document))
    if len(zones) > MAX_ZONES:
        _refuse(where, f"at most {MAX_ZONES} zones", len(zones))
    return [_zone(entry, f"{where}, zone {number}") for number, entry in enumerate(zones, 1)]


def _zone(entry: Any, where: str) -> Zone:
    if not isinstance(entry, dict):
        _refuse(where, "an object with name and polygon", _shown_json(entry))
    unknown = sorted(set(entry) - set(_KEYS))
    if unknown:
        _refuse(where, f"only {', '.join(_KEYS)}", _shown(unknown[0]))
    name = entry.get("name")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
        _refuse(where, f"a name of 1 to {MAX_NAME} printable characters", _shown_json(name))
    polygon = entry.get("polygon")
    if not isinstance(polygon, list) or not 3 <= len(polygon) <= MAX_CORNERS:
        got = f"{len(polygon)} corners" if isinstance(polygon, list) else _shown_json(polygon)
        _refuse(where, f"a polygon of 3 to {MAX_CORNERS} corners", got)
    corners = []
    for corner in polygon:
        if not isinstance(corner, list) or len(corner) != 2:
            _refuse(where, "corners [x, y]", _shown_json(corner))
        corners.append((_number(corner[0], where, "x", 0.0, 1.0), _number(corner[1], where, "y", 0.0, 1.0)))
    if len(set(corners)) < 3:
        _refuse(where, "three corners that differ", len(set(corners)))
    streams = entry.get("streams", [])
    if not isinstance(streams, list) or not all(type(one) is int and 0 <= one < 64 for one in streams):
        _refuse(where, "streams as a list of numbers from 0 to 63", _shown_json(streams))
    times = {key: _number(entry[key], where, key, 0.0, MAX_SECONDS) for key in ("enter_s", "leave_s") if key in entry}
    if entry.get("dwell_s") is not None:
        times["dwell_s"] = _number(entry["dwell_s"], where, "dwell_s", 0.1, MAX_SECONDS)
    if "margin" in entry:
        times["margin"] = _number(entry["margin"], where, "margin", 0.0, 0.5)
    return Zone(name=name, corners=tuple(corners), streams=tuple(streams), **times)


def _number(value: Any, where: str, what: str, low: float, high: float) -> float:
    if type(value) not in {int, float} or not low <= value <= high:  # NaN compares as False
        _refuse(where, f"{what} from {low:g} to {high:g}", _shown_json(value))
    return float(value)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _refuse(where: str, expected: str, got: object) -> NoReturn:
    raise SettingsError(f"{where}: expected {expected}, got {got}")


def _shown_json(value: Any) -> str:
    try:
        return _shown(json.dumps(value))
    except (RecursionError, ValueError):
        return "something nested deeply"


def _shown(text: str) -> str:
    short = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in short)
