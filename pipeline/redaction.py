"""Keep the passwords of stream addresses out of every message, log line and output file."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s'\"]*@")
_SECRET_PARAMETER = re.compile(
    r"(?P<name>[?&;](?:[A-Za-z0-9_.-]*(?:pass|pwd|token|secret|key|auth|sig|credential)[A-Za-z0-9_.-]*|user|username)=)"
    r"[^&;#\s'\"]*",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Replace user names, passwords and secret query parameters of all URLs in a text by ``***``.

    Args:
        text: anything that may quote an address: a library's error message, a traceback, a settings dump.
    """
    return _SECRET_PARAMETER.sub(r"\g<name>***", _USER_INFO.sub(r"\g<scheme>***@", text))
