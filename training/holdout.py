"""Which pictures of a set a run never learns from.

Two ways, both settings of a source. ``holdout_every`` keeps pictures for choosing between models: a run looks at them
when it validates itself. ``hold_back_tenth`` keeps a fixed tenth for reporting: neither learned from nor looked at.
`training.compose_benchmark` cuts people out of that tenth only, so a model whose recipe holds it back has seen none of
them.

The tenth is made of whole groups of near duplicates, and it holds every picture whose id is divisible by 25: sets that
were trained with ``holdout_every`` 5 or 25 have unseen pictures in it, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from training.settings import SourceSettings

if TYPE_CHECKING:
    from training.dataset import Photo

HELD_BACK_OF = 50
HELD_BACK_REMAINDERS = (0, 5, 20, 25, 40)  # of ids by `HELD_BACK_OF`: a tenth; all divisible by 5


def is_held_out(image_id: int, every: int) -> bool:
    """Whether a picture belongs to the part of a source that is kept for choosing between models."""
    return every > 0 and image_id % every == 0


def held_back_ids(photos: Iterable[Photo]) -> frozenset[int]:
    """Ids of the pictures of a set that are kept for reporting.

    A picture's own id decides; near duplicates go with the smallest id of their group.
    """
    photos = list(photos)
    first: dict[int, int] = {}
    for photo in photos:
        if photo.near_duplicate_group is not None:
            group = photo.near_duplicate_group
            first[group] = min(first.get(group, photo.image_id), photo.image_id)
    return frozenset(
        photo.image_id
        for photo in photos
        if (photo.image_id if photo.near_duplicate_group is None else first[photo.near_duplicate_group]) % HELD_BACK_OF
        in HELD_BACK_REMAINDERS
    )


def unseen_ids(photos: Iterable[Photo], source: SourceSettings) -> frozenset[int]:
    """Ids of the pictures that a run with this source never learns from, for whichever reason."""
    photos = list(photos)
    held_out = frozenset(photo.image_id for photo in photos if is_held_out(photo.image_id, source.holdout_every))
    return held_out | held_back_ids(photos) if source.hold_back_tenth else held_out


def validation_ids(photos: Iterable[Photo], source: SourceSettings) -> frozenset[int]:
    """Ids of the pictures that a run validates itself on."""
    photos = list(photos)
    held_out = frozenset(photo.image_id for photo in photos if is_held_out(photo.image_id, source.holdout_every))
    return held_out - held_back_ids(photos) if source.hold_back_tenth else held_out
