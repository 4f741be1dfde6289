"""The process that holds one connection of ``--push``: MPEG-TS on standard input, packets to a server.

    python remux.py      stdin: a line {"url": ..., "format": ..., "options": {...}}, then the stream
                         stdout: "ready" once the server has taken the connection; stderr: what went wrong

A process of its own because PyAV opens outputs with the interpreter's lock held and without a time limit: a server that
accepts a connection and says nothing would stop all cameras. Here an alarm ends the process, whatever hangs in it. The
address comes on standard input, so that it does not stand in the list of processes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import av

CONNECT_S = 8
SEND_S = 5
GOODBYE_S = 2
_PROBE = {"probesize": "65536", "analyzeduration": "100000", "fpsprobesize": "0"}


class Input:
    """Bytes as they come: a buffered reader would wait until its buffer is full."""

    def read(self, count: int) -> bytes:
        return os.read(0, count)


def main() -> int:
    """Remux until the input ends; 1 when the server cannot be reached or goes away."""
    signal.alarm(CONNECT_S)
    line = b""
    while not line.endswith(b"\n"):
        sign = os.read(0, 1)
        if not sign:
            return 1
        line += sign
    wanted: dict[str, Any] = json.loads(line)
    try:
        with av.open(Input(), "r", format="mpegts", options=_PROBE) as source:
            stream = source.streams.video[0]
            output = av.open(wanted["url"], "w", format=wanted["format"], options=wanted["options"])
            to = output.add_stream_from_template(stream)
            output.start_encoding()
            os.write(1, b"ready\n")
            signal.alarm(0)
            for packet in source.demux(stream):
                if packet.dts is None:
                    continue
                packet.stream = to
                signal.alarm(SEND_S)
                output.mux(packet)
                signal.alarm(0)
            signal.alarm(GOODBYE_S)
            output.close()
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        os.write(2, text.encode()[:1000])
        os._exit(1)  # closing what failed may hang
    return 0


if __name__ == "__main__":
    sys.exit(main())
