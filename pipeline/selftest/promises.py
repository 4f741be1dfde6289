"""The promises of live runs: servers that go away, outputs that fail, and the end of a run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from typing import Final

from pipeline.live.source import SourceState
from pipeline.messages import FrameResult
from pipeline.metrics import percentile
from pipeline.selftest.chaos import WAIT_S, Case, Chaos, NotKept, Watched, address_of, numbers_in, results_in
from pipeline.selftest.servers import CameraServer, HttpCameraServer, RtspCameraServer

STOP_S: Final = 5.0
LOST_S: Final = 1.0
LATENCY_MS: Final = 250.0


def killed(chaos: Chaos) -> str:
    """The server goes away and comes back."""
    back_s = []
    with RtspCameraServer(chaos.camera) as server, Watched(chaos, server) as watched:
        for _ in range(chaos.cycles):
            watched.fresh(count=3)
            server.kill()
            watched.wait(lambda: watched.report().source.state is SourceState.RECONNECTING, "the loss is noticed")
            server.start()
            back_s.append(watched.fresh(count=3))
        connects = watched.report().source.connects
    watched.check_order()
    if connects < chaos.cycles + 1:
        raise NotKept(f"{connects} connections for {chaos.cycles} restarts")
    return f"{chaos.cycles} of {chaos.cycles} times back, after {max(back_s):.1f} s at most"


def stalled(chaos: Chaos) -> str:
    """The connection stays, the pictures do not."""
    with RtspCameraServer(chaos.camera) as server, Watched(chaos, server) as watched:
        watched.fresh(count=3)
        chaos.camera.silent.set()
        started = time.monotonic()
        try:
            watched.wait(lambda: watched.report().source.reconnects.get("stalled", 0) > 0, "the silence is noticed")
            noticed_s = time.monotonic() - started
        finally:
            chaos.camera.silent.clear()
        back_s = watched.fresh(count=3)
    watched.check_order()
    return f"noticed after {noticed_s:.1f} s (--stall-timeout 2), pictures again after {back_s:.1f} s"


def damaged(chaos: Chaos) -> str:
    """Bits flip on the way."""
    with CameraServer(chaos.camera) as server:
        server.corrupt_share = 0.02
        with Watched(chaos, server) as watched:
            watched.wait(lambda: watched.report().results >= 10 * chaos.camera.fps // 2, "pictures all the same")
            snapshot = watched.report()
    broken = snapshot.source.dropped.get("broken packet", 0)
    return f"{snapshot.source.frames} pictures decoded, {broken} packets thrown away, run goes on"


def resized(chaos: Chaos) -> str:
    """Another picture size in the middle."""
    with RtspCameraServer(chaos.camera) as server, Watched(chaos, server) as watched:
        watched.fresh(count=3)
        before = chaos.camera.size
        chaos.camera.size = (360, 640)
        try:
            watched.wait(lambda: (360, 640) in watched.sizes, "pictures of the new size")
            watched.fresh(count=3)
        finally:
            chaos.camera.size = before
        connects = watched.report().source.connects
    watched.check_order()
    if connects != 1:
        raise NotKept(f"{connects} connections")
    return "480 x 270 became 640 x 360, same connection"


def one_dead(chaos: Chaos) -> str:
    """Four cameras, one of them away."""
    with contextlib.ExitStack() as stack:
        kinds = (RtspCameraServer, HttpCameraServer, CameraServer, CameraServer)
        servers = [stack.enter_context(kind(chaos.camera)) for kind in kinds]
        servers[3].kill()
        watched = stack.enter_context(Watched(chaos, *servers))
        for stream in range(3):
            watched.fresh(stream, count=10)
        snapshots = watched.run.sources()
    watched.check_order()
    tries = sum(snapshots[3].source.reconnects.values())
    disturbed = [s.stream for s in snapshots[:3] if s.source.reconnects]
    if disturbed:
        raise NotKept(f"streams {disturbed} had to be opened again")
    return f"{', '.join(str(s.results) for s in snapshots[:3])} results of the others, {tries} tries for the dead one"


class SlowSink:
    """Takes a second for each frame."""

    name = "slow"

    def __init__(self) -> None:
        self.ended = threading.Event()

    def write(self, result: FrameResult) -> None:
        del result
        self.ended.wait(1.0)

    def close(self) -> None:
        """Nothing is held."""


def slow_sink(chaos: Chaos) -> str:
    """One output takes a second per frame."""
    sink = SlowSink()
    folder = chaos.folder_of("slow")
    with (
        CameraServer(chaos.camera) as server,
        Watched(chaos, server, sinks=[sink], output_dir=folder, record="off", keep_free_gb=0.0) as watched,
    ):
        watched.fresh(count=3)
        watched.wait(lambda: watched.report().results >= 5 * chaos.camera.fps, "results")
        quick = watched.report().sinks[0]
        slow = watched.run.shared_sinks()[0]
        results = watched.report().results
        sink.ended.set()
    if quick.dropped or quick.written < results - 20:
        raise NotKept(f"the other sink wrote {quick.written} of {results}, lost {quick.dropped}")
    lost = slow.dropped.get("sink too slow", 0)
    return f"{results} results; JSON lines lost none; the slow sink wrote {slow.written}, {lost} left out and counted"


def disk_full(chaos: Chaos) -> str:
    """No file may grow beyond 60 kB."""
    folder = chaos.folder_of("full")
    with (
        CameraServer(chaos.camera) as server,
        chaos.command(
            address_of(server), "--output-dir", str(folder), "--keep-free-gb", "0", "--seconds", "12", most_bytes=60_000
        ) as process,
    ):
        _, errors = process.communicate(timeout=WAIT_S)
    said = errors.count("recording stopped")
    lines = results_in(errors)
    videos = sorted(folder.rglob("*.mp4"))
    shown = sum(len(numbers_in(video)) for video in videos)
    if process.returncode or not said or said > 4 or not lines or not shown:
        raise NotKept(f"exit code {process.returncode}, {said} lines of warning, {lines} results, {shown} frames kept")
    return f"{lines} results went on, said {said} times, {len(videos)} recordings with {shown} frames that play"


def killed_hard(chaos: Chaos) -> str:
    """The process is killed while it records."""
    folder = chaos.folder_of("killed")
    with (
        CameraServer(chaos.camera) as server,
        chaos.command(address_of(server), "--output-dir", str(folder), "--keep-free-gb", "0") as process,
    ):
        deadline = time.monotonic() + WAIT_S
        while not any(path.stat().st_size > 100_000 for path in folder.rglob("*.mp4")):
            if time.monotonic() > deadline or process.poll() is not None:
                raise NotKept(f"no recording: {process.communicate()[1][-300:]}")
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        process.wait(10)
    video = max(folder.rglob("*.mp4"))
    numbers = numbers_in(video)
    lost_s = killed_s - chaos.camera.made_s(max(numbers, default=0))
    if numbers != sorted(set(numbers)) or lost_s > LOST_S:
        raise NotKept(f"{len(numbers)} frames play, {lost_s:.2f} s are lost")
    return f"{len(numbers)} frames play, the last {lost_s:.2f} s are lost"


def terminated(chaos: Chaos) -> str:
    """SIGTERM in the middle, one camera silent."""
    folder = chaos.folder_of("terminated")
    with CameraServer(chaos.camera) as server, CameraServer(chaos.camera) as mute:
        mute.mute = True
        arguments = [address_of(server), address_of(mute), "--output-dir", str(folder), "--keep-free-gb", "0"]
        targets = [
            "--publish",
            f"tcp://127.0.0.1:{mute.port}",
            "--push",
            f"rtmp://127.0.0.1:{mute.port}/live/{{stream}}",
        ]
        with chaos.command(*arguments, *targets) as process:
            deadline = time.monotonic() + WAIT_S
            while not any(path.stat().st_size > 20_000 for path in folder.rglob("*.mp4")):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise NotKept(f"no recording: {process.communicate()[1][-300:]}")
                time.sleep(0.02)
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=WAIT_S)
            took_s = time.monotonic() - started
    video = max(folder.rglob("*.mp4"))
    lines = max(folder.rglob("*.jsonl")).read_text().splitlines()
    frames = len(numbers_in(video))
    for line in lines:
        json.loads(line)
    if process.returncode or took_s > STOP_S or not frames:
        raise NotKept(f"exit code {process.returncode} after {took_s:.1f} s, {frames} frames")
    return f"exit code 0 after {took_s:.1f} s; {frames} frames and {len(lines)} lines are whole"


def latency(chaos: Chaos) -> str:
    """How old a picture is when its result is there."""
    with RtspCameraServer(chaos.camera) as server, Watched(chaos, server) as watched:
        watched.fresh(count=20)
        began = len(watched.ages_ms[0])
        time.sleep(chaos.seconds)
        ages = watched.ages_ms[0][began:]
    halves = [sorted(part) for part in (ages[: len(ages) // 2], ages[len(ages) // 2 :])]
    (p50, p95), later = ((percentile(sorted(ages), share) for share in (0.5, 0.95)), percentile(halves[1], 0.95))
    load = os.getloadavg()[0]
    text = (
        f"p50 {p50:.0f} ms, p95 {p95:.0f} ms ({percentile(halves[0], 0.95):.0f} in the first half, {later:.0f} in the "
        f"second), {len(ages)} results in {chaos.seconds:.0f} s; {os.cpu_count()} cores, load {load:.1f}"
    )
    if p95 > LATENCY_MS:
        raise NotKept(text)
    return text


PROMISES: Final = (
    Case(
        name="killed",
        promise="a camera that went away comes back",
        provoked="RTSP server killed and started again",
        measure=killed,
    ),
    Case(
        name="stalled",
        promise="silence is noticed",
        provoked="connection stays open, no pictures for a while",
        measure=stalled,
    ),
    Case(name="damaged", promise="broken packets end nothing", provoked="2 % of the packets damaged", measure=damaged),
    Case(name="resized", promise="another size needs no restart", provoked="size changed mid-stream", measure=resized),
    Case(name="dead", promise="a dead camera stops no other", provoked="four cameras, one away", measure=one_dead),
    Case(
        name="slow-sink",
        promise="a slow output slows no other",
        provoked="an output that takes 1 s for each frame",
        measure=slow_sink,
    ),
    Case(
        name="disk-full",
        promise="a full disk ends the recording, not the run",
        provoked="files may not grow beyond 60 kB",
        measure=disk_full,
    ),
    Case(
        name="kill-9",
        promise=f"a crash costs at most {LOST_S:g} s of recording",
        provoked="kill -9 while recording",
        measure=killed_hard,
    ),
    Case(
        name="sigterm",
        promise=f"SIGTERM ends within {STOP_S:g} s, outputs whole",
        provoked="SIGTERM while recording, another camera and the targets silent",
        measure=terminated,
    ),
    Case(
        name="latency",
        promise=f"glass to result p95 under {LATENCY_MS:g} ms on two idle cores",
        provoked="RTSP, 480 x 270 at 25 FPS",
        measure=latency,
    ),
)
