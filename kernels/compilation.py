"""One place for the compiler flags of all Numba functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile with Numba on first call; the machine code is kept on disk, and other threads run meanwhile.

    ``fastmath`` stays off: NaN and infinity are legal input everywhere and are tested for.
    """
    return cast(Function, njit(nogil=True, cache=True)(function))
