"""What layers remember from frame to frame, as bytes: plain values and arrays that come back exactly.

A batch stores them at the border of two segments (docs/adr/0010-segments-in-order.md).
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

_ARRAY = "array of the file"


def pack_state(state: Any) -> bytes:
    """Bytes of nested dicts with text keys, lists, plain values and arrays; tuples come back as lists."""
    arrays: list[np.ndarray[Any, Any]] = []

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays.append(value)
            return {_ARRAY: len(arrays) - 1}
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value

    text = json.dumps(plain(state))
    content = io.BytesIO()
    named = {f"a{number}": array for number, array in enumerate(arrays)}
    np.savez(content, text=np.frombuffer(text.encode(), np.uint8), **named)  # type: ignore[arg-type]
    return content.getvalue()


def unpack_state(data: bytes) -> Any:
    """What `pack_state` was given.

    Raises:
        ValueError: these are other bytes.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return _with_arrays(json.loads(stored["text"].tobytes()), stored)
    except Exception as error:
        raise ValueError(f"expected the state of layers, got {len(data)} other bytes ({error})") from error


def _with_arrays(value: Any, stored: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return stored[f"a{value[_ARRAY]}"]
        return {name: _with_arrays(part, stored) for name, part in value.items()}
    return [_with_arrays(part, stored) for part in value] if isinstance(value, list) else value
