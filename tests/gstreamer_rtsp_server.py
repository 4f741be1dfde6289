"""Debian's GStreamer RTSP server, run by the system's Python: H.264 access units on stdin, RTSP on a port.

    /usr/bin/python3 gstreamer_rtsp_server.py PORT     each unit on stdin: 4 bytes length, big-endian, then the unit

Prints ``ready`` once it listens. Packages: gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-good
"""

from __future__ import annotations

import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


class Factory(GstRtspServer.RTSPMediaFactory):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list = []
        self.set_shared(True)
        self.set_launch(
            "( appsrc name=source is-live=true format=time do-timestamp=true "
            "caps=video/x-h264,stream-format=byte-stream,alignment=au "
            "! rtph264pay name=pay0 pt=96 config-interval=-1 )"
        )

    def do_configure(self, media) -> None:
        self.sources = [media.get_element().get_by_name("source")]


def feed(factory: Factory) -> None:
    reader = sys.stdin.buffer
    while len(head := reader.read(4)) == 4:
        unit = reader.read(int.from_bytes(head, "big"))
        for source in factory.sources:
            source.emit("push-buffer", Gst.Buffer.new_wrapped(unit))
    loop.quit()


Gst.init(None)
loop = GLib.MainLoop()
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
made = Factory()
server.get_mount_points().add_factory("/camera", made)
server.attach(None)
threading.Thread(target=feed, args=(made,), daemon=True).start()
print("ready", flush=True)
loop.run()
