"""Debian's GStreamer RTSP server as one that is pushed to, run by the system's Python.

    /usr/bin/python3 gstreamer_record_server.py PORT [USER PASSWORD]     RECORD at /camera on 127.0.0.1

Prints ``ready`` once it listens; then each H.264 access unit that arrives, 4 bytes length, big-endian, before it.
Packages: gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-good
"""

from __future__ import annotations

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstApp, GstRtsp, GstRtspServer  # noqa: E402


def on_sample(sink: GstApp.AppSink) -> Gst.FlowReturn:
    buffer = sink.emit("pull-sample").get_buffer()
    unit = buffer.extract_dup(0, buffer.get_size())
    sys.stdout.buffer.write(len(unit).to_bytes(4, "big") + unit)
    sys.stdout.buffer.flush()
    return Gst.FlowReturn.OK


class Factory(GstRtspServer.RTSPMediaFactory):
    def __init__(self) -> None:
        super().__init__()
        self.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
        self.set_launch(
            "( rtph264depay name=depay0 ! video/x-h264,stream-format=byte-stream,alignment=au "
            "! appsink name=sink emit-signals=true sync=false )"
        )

    def do_configure(self, media: GstRtspServer.RTSPMedia) -> None:
        media.get_element().get_by_name("sink").connect("new-sample", on_sample)


Gst.init(None)
loop = GLib.MainLoop()
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
made = Factory()
if len(sys.argv) > 2:
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "pusher")
    auth.add_digest(sys.argv[2], sys.argv[3], token)
    auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
    server.set_auth(auth)
    made.add_role_from_structure(
        Gst.Structure.new_from_string("pusher, media.factory.access=true, media.factory.construct=true")
    )
server.get_mount_points().add_factory("/camera", made)
server.attach(None)
sys.stdout.buffer.write(b"ready\n")
sys.stdout.buffer.flush()
loop.run()
