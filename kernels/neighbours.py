"""The other people in a person's window, drawn from their joints as two feature maps: whose body a px is likelier to be.

Ours, not the paper's: its SegModule sees its own person's skeleton only (section 3.3).
"""

from __future__ import annotations

SIGMA_PX = 3.0  # how far a body reaches around its joints and limbs in its own window
MIN_SIGMA_PX, MAX_SIGMA_PX = 1.0, 10.0
SAME_PERSON_PX = 2.0  # two poses whose common joints lie closer than this on average are one person, found twice
CHANNELS = 2

#: (joint, joint, share of the way between them): the 17 joints themselves and points inside of the body.
BODY_POINTS: tuple[tuple[int, int, float], ...] = (
    *((joint, joint, 0.0) for joint in range(17)),
    (5, 6, 0.5),
    (11, 12, 0.5),
    (5, 12, 0.5),
    (5, 11, 1 / 3),
    (5, 11, 2 / 3),
    (6, 12, 1 / 3),
    (6, 12, 2 / 3),
    (5, 7, 0.5),
    (6, 8, 0.5),
    (7, 9, 0.5),
    (8, 10, 0.5),
    (11, 13, 1 / 3),
    (11, 13, 2 / 3),
    (12, 14, 1 / 3),
    (12, 14, 2 / 3),
    (13, 15, 1 / 3),
    (13, 15, 2 / 3),
    (14, 16, 1 / 3),
    (14, 16, 2 / 3),
)
