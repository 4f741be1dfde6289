"""Real servers that live runs send to, started on the loopback interface: an MQTT broker, RTMP and RTSP servers."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

import av

from pipeline.selftest.servers import number_of

NGINX_RTMP = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")
RECORD_SERVER = Path(__file__).with_name("gstreamer_record_server.py")
WAIT_S = 30


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def program(name: str) -> str | None:
    """Servers lie in sbin, which is not in everybody's PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def wait_for_port(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        assert process.poll() is None, "the server ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.02)
        else:
            return


class Server:
    """A process that listens on a port; it can be killed and comes back at the same one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        wait_for_port(self.port, self.process)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


class Mosquitto(Server):
    """Debian's MQTT broker; one user, no strangers."""

    user, password = "camera", "hunter2/#@"

    def command(self) -> list[str]:
        passwords = self.folder / "passwords"
        passwords.touch(mode=0o600)
        subprocess.run([program("mosquitto_passwd"), "-b", passwords, self.user, self.password], check=True)
        config = self.folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\nuser root\n"
        )
        return [program("mosquitto"), "-c", str(config)]


class NginxRtmp(Server):
    """nginx with its RTMP module; streams below /live."""

    def command(self) -> list[str]:
        config = self.folder / "nginx.conf"
        config.write_text(
            f"load_module {NGINX_RTMP};\ndaemon off; master_process off;\n"
            f"error_log {self.folder}/error.log; pid {self.folder}/nginx.pid;\nevents {{ worker_connections 64; }}\n"
            f"rtmp {{ server {{ listen 127.0.0.1:{self.port}; application live {{ live on; }} }} }}\n"
        )
        return [program("nginx"), "-c", str(config), "-p", str(self.folder)]


class RtspRecordServer(Server):
    """Debian's GStreamer RTSP server that is pushed to with a password; the numbers of its pictures."""

    user, password = "camera", "hunter2"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.numbers: list[int] = []

    def command(self) -> list[str]:
        return ["/usr/bin/python3", str(RECORD_SERVER), str(self.port), self.user, self.password]

    def start(self) -> None:
        self.process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.process.stdout.readline() == b"ready\n"
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process) -> None:
        decoder = av.CodecContext.create("h264", "r")
        with process.stdout:
            while len(head := process.stdout.read(4)) == 4:
                unit = process.stdout.read(int.from_bytes(head, "big"))
                with contextlib.suppress(av.FFmpegError):
                    for shown in decoder.decode(av.Packet(unit)):
                        self.numbers.append(number_of(shown.to_ndarray(format="rgb24")))
