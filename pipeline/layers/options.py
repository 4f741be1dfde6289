"""What ``--layer KIND=FILE`` and its companions mean: read and checked here, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pipeline.errors import SettingsError

_VIDEO: Final = (".mp4", ".m4v", ".mov")
FOLDER: Final = "a folder (a name without suffix)"
LAYER_KINDS: Final = {
    "cutout": (".mov", ".webm", FOLDER),
    "matte": (".mp4", ".m4v", ".mov", ".mkv", FOLDER),
    "outline": (".mp4", ".m4v", ".mov", ".webm", FOLDER),
    "background": _VIDEO,
    "blur": _VIDEO,
    "pixelate": _VIDEO,
    "remove": _VIDEO,
    "heatmap": (".png", ".jpg", ".jpeg"),
}
"""Kind of layer -> what its file may be."""

HIDING: Final = ("blur", "pixelate", "remove")
"""Kinds whose purpose is that somebody is not seen; see `pipeline.layers.cover`."""

HIDING_CHOICES: Final = ("off", *HIDING)
Hide = Literal["off", "blur", "pixelate", "remove"]
DRAW_CHOICES: Final = ("people", "outline", "matte", "background", *HIDING)
Draw = Literal["people", "outline", "matte", "background", "blur", "pixelate", "remove"]

PER_PERSON: Final = ("cutout", "matte")
ID_MARK: Final = "{id}"
PNG_FORMAT: Final = "png"  # of a folder
_COLOR: Final = re.compile(r"#[0-9a-fA-F]{6}")
_IDS: Final = re.compile(r"(not:)?(\d{1,9}(?:,\d{1,9})*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer.

    Attributes:
        kind: of `LAYER_KINDS`.
        path: the file or folder; with ``{id}`` in its name it stands for one per person.
    """

    kind: str
    path: Path

    @property
    def per_person(self) -> bool:
        return ID_MARK in self.path.name

    @property
    def is_folder(self) -> bool:
        return not self.path.suffix

    def path_of(self, person_id: int) -> Path:
        """The file or folder of one person."""
        return self.path.with_name(self.path.name.replace(ID_MARK, str(person_id)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPeople:
    """Whom the layers are about.

    Attributes:
        ids: of people.
        others: everybody but these.
    """

    ids: frozenset[int] = frozenset()
    others: bool = True

    def __contains__(self, person_id: int) -> bool:
        return (person_id in self.ids) != self.others


def read_layer(text: str) -> Layer:
    """``blur=out.mp4`` -> Layer.

    Raises:
        SettingsError: unknown kind, no file, or a name that this kind cannot be written to.
    """
    kind, equals, name = text.partition("=")
    if kind not in LAYER_KINDS:
        raise SettingsError(f"--layer expects KIND=FILE with KIND one of {', '.join(LAYER_KINDS)}, got {text!r}")
    if not equals or not name:
        raise SettingsError(f"--layer {kind} expects a file: --layer {kind}=FILE, got {text!r}")
    layer = Layer(kind=kind, path=Path(name))
    allowed = LAYER_KINDS[kind]
    if layer.path.suffix.lower() not in allowed and not (layer.is_folder and FOLDER in allowed):
        raise SettingsError(f"--layer {kind} expects a name ending in {', '.join(allowed)}, got {name}")
    if ID_MARK in name and (kind not in PER_PERSON or not layer.per_person):
        raise SettingsError(
            f"--layer {kind}: {ID_MARK} makes a file per person of {' and '.join(PER_PERSON)}, in the last part of the "
            f"path; got {name}"
        )
    return layer


def read_layers(texts: Sequence[str]) -> tuple[Layer, ...]:
    """All layers of a run.

    Raises:
        SettingsError: see `read_layer`.
    """
    return tuple(read_layer(text) for text in texts)


def read_named_layer(text: str) -> Layer:
    """``cutout``, ``cutout=webm``, ``cutout=png`` (a folder), ``cutout={id}.mov`` -> Layer with a relative path.

    What an input's output of it is called: a name made of the input's, a dot, the path.

    Raises:
        SettingsError: an unknown kind, or a format that it cannot be written in.
    """
    kind, equals, ending = text.partition("=")
    if kind not in LAYER_KINDS:
        raise SettingsError(
            f"--layer expects KIND or KIND=FORMAT with KIND one of {', '.join(LAYER_KINDS)}, got {text!r}"
        )
    allowed = [name.removeprefix(".") for name in LAYER_KINDS[kind] if name != FOLDER]
    takes_folder = FOLDER in LAYER_KINDS[kind]
    per_person = ending == ID_MARK or ending.startswith(ID_MARK + ".")
    chosen = ending.removeprefix(ID_MARK).removeprefix(".") if equals else allowed[0]
    chosen = (chosen or allowed[0]).lower()
    if chosen not in [*allowed, *([PNG_FORMAT] if takes_folder else [])]:
        formats = ", ".join([*allowed, *([f"{PNG_FORMAT} (a folder of pictures)"] if takes_folder else [])])
        raise SettingsError(
            f"--layer {kind} expects a format, one of {formats}, got {ending!r}: outputs are named for their inputs"
        )
    if per_person and kind not in PER_PERSON:
        raise SettingsError(f"--layer {kind}: {ID_MARK} makes a file per person of {' and '.join(PER_PERSON)} only")
    suffix = "" if chosen == PNG_FORMAT and takes_folder else f".{chosen}"
    return Layer(kind=kind, path=Path(f"{kind}{'-' + ID_MARK if per_person else ''}{suffix}"))


def read_named_layers(texts: Sequence[str]) -> tuple[Layer, ...]:
    """All layers of a run whose outputs get their names from its inputs.

    Raises:
        SettingsError: see `read_named_layer`; or one is given twice.
    """
    layers = tuple(read_named_layer(text) for text in texts)
    for layer in layers:
        if layers.count(layer) > 1:
            raise SettingsError(f"--layer {layer.kind} is given twice in the format {layer.path.suffix or PNG_FORMAT}")
    return layers


def read_ids(text: str | None) -> ChosenPeople:
    """``1,3``: these people; ``not:1,3``: everybody else; None: everybody.

    Raises:
        SettingsError: it is neither.
    """
    if text is None:
        return ChosenPeople()
    found = _IDS.fullmatch(text)
    ids = frozenset(int(part) for part in found[2].split(",")) if found else frozenset()
    if not found or 0 in ids:
        raise SettingsError(f"--layer-ids expects ids from 1 such as 1,3 or not:1,3 (everybody else), got {text!r}")
    return ChosenPeople(ids=ids, others=found[1] is not None)


def read_background(text: str) -> tuple[int, int, int] | Path | None:
    """``#00ff00`` -> its RGB, ``blur`` -> None, anything else is the path of a picture.

    Raises:
        SettingsError: it begins like a colour and is none, or is empty.
    """
    if text == "blur":
        return None
    if _COLOR.fullmatch(text):
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
    if not text or text.startswith("#"):
        raise SettingsError(f"--layer-background expects a picture, a colour such as #00ff00 or blur, got {text!r}")
    return Path(text)
