"""Keep the passwords of stream addresses out of every message, log line and output file."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s'\"]*@")
# A password with a slash that was not written as %2F: no address that can be opened, but one that gets into messages.
# Digits and a slash behind the colon are a port, not a password.
_UNESCAPED = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"/:@\[]+:(?![0-9]{1,5}(?:[/?#]|$))[^\s'\"]*@")
_SECRET_PARAMETER = re.compile(
    r"(?P<name>[?&;](?:[A-Za-z0-9_.-]*(?:pass|pwd|token|secret|key|auth|sig|credential)[A-Za-z0-9_.-]*|user|username)=)"
    r"[^&;#\s'\"]*",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"(?P<name>\bauthorization['\"]?\s*[:=]\s*['\"]?(?:basic|bearer|digest)\s+)[^\s'\"]+", re.IGNORECASE
)


def redact(text: str) -> str:
    """Replace user names, passwords and secret query parameters of URLs, and Authorization headers, by ``***``.

    Args:
        text: anything that may quote an address: a library's error message, a traceback, a settings dump.
    """
    text = _UNESCAPED.sub(r"\g<scheme>***@", _USER_INFO.sub(r"\g<scheme>***@", text))
    return _HEADER.sub(r"\g<name>***", _SECRET_PARAMETER.sub(r"\g<name>***", text))
