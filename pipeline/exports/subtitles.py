"""How many people are seen, as subtitles beside a video: SubRip (.srt) or WebVTT (.vtt)."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Final

from pipeline.messages import FrameResult
from pipeline.stage6_sinks import check_output, close_output, create_output, write_whole
from pipeline.video_output import OutputClock

SHORTEST_S: Final = 0.5  # a number that stands for less time cannot be read: the one before stays


class Cues:
    """Numbers of people over time -> cues, each made when it is over."""

    def __init__(self, *, vtt: bool) -> None:
        self.header = b"WEBVTT\n\n" if vtt else b""
        self._vtt = vtt
        self._count = 0
        self._people: int | None = None
        self._start_s = 0.0

    def add(self, now_s: float, people: int) -> bytes:
        """The cue that ends with this frame; nothing where none does."""
        if self._people is None:
            self._people, self._start_s = people, now_s
        elif people != self._people and now_s - self._start_s >= SHORTEST_S:
            done = self.end(now_s)
            self._people, self._start_s = people, now_s
            return done
        return b""

    def end(self, end_s: float) -> bytes:
        """The cue that runs, up to a time."""
        if self._people is None or end_s <= self._start_s:
            return b""
        self._count += 1
        times = f"{_clock_time(self._start_s, vtt=self._vtt)} --> {_clock_time(end_s, vtt=self._vtt)}"
        return f"{self._count}\n{times}\n{self._people} {'person' if self._people == 1 else 'people'}\n\n".encode()


class SubtitleSink:
    """A cue for each time in which the number of people stays the same, on the time line of ``--output``.

    A cue is written when it is over, so that a player may follow and a kill costs the last one.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self._path = path
        self._overwrite = overwrite
        self._file: IO[bytes] | None = None
        self._clock = OutputClock()
        self._cues = Cues(vtt=path.suffix.lower() == ".vtt")
        self._newest_s = 0.0

    def check(self) -> None:
        check_output(self._path, overwrite=self._overwrite)

    def write(self, result: FrameResult) -> None:
        pts = self._clock.pts_of(result.frame)
        self._newest_s = float(pts * self._clock.time_base)
        if self._file is None:
            self._file = create_output(self._path, overwrite=self._overwrite)
            write_whole(self._file, self._cues.header, self._path)
        write_whole(self._file, self._cues.add(self._newest_s, len(result.people)), self._path)

    def close(self) -> None:
        try:
            if self._file is not None:
                step_s = float(self._clock.last_step * self._clock.time_base)
                write_whole(self._file, self._cues.end(self._newest_s + step_s), self._path)
        finally:
            close_output(self._file, self._path)


def _clock_time(seconds: float, *, vtt: bool) -> str:
    whole, ms = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{'.' if vtt else ','}{ms:03d}"
