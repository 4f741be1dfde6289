"""Subtitles of how many people are seen: times, flicker, and that FFmpeg reads them."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from pipeline.build import make_sinks
from pipeline.exports.subtitles import Cues
from pipeline.settings import Settings
from pipeline.stage6_sinks import WriteStage
from tests.layer_results import result_of

PEOPLE = {1: (20.0, 30.0, 50.0, 100.0), 2: (100.0, 25.0, 135.0, 105.0)}


def written(path: Path, counts: list[int], *, first_pts: int = 0) -> str:
    stage = WriteStage(make_sinks(Settings(source="x", export=(f"{path.suffix[1:]}={path}",)), None))
    for number, count in enumerate(counts):
        people = dict(list(PEOPLE.items())[:count])
        stage.process(result_of(people, number=number, pts=first_pts + number))
    stage.close()
    return path.read_text() if path.exists() else ""


def test_times_and_texts(tmp_path) -> None:
    counts = [0] * 25 + [1] * 50 + [2] * 25
    assert written(tmp_path / "a.srt", counts, first_pts=1000) == (
        "1\n00:00:00,000 --> 00:00:01,000\n0 people\n\n"
        "2\n00:00:01,000 --> 00:00:03,000\n1 person\n\n"
        "3\n00:00:03,000 --> 00:00:04,000\n2 people\n\n"
    )
    text = written(tmp_path / "a.vtt", counts)
    assert text.startswith("WEBVTT\n\n1\n00:00:00.000 --> 00:00:01.000\n0 people\n\n")


@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_ffmpeg_reads_them(tmp_path, suffix) -> None:
    written(tmp_path / f"a{suffix}", [1] * 25 + [2] * 25)
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        packets = [packet for packet in container.demux(subtitles=0) if packet.size]
        assert [bytes(packet).decode() for packet in packets] == ["1 person", "2 people"]
        times = [
            (float(packet.pts * packet.time_base), float(packet.duration * packet.time_base)) for packet in packets
        ]
    assert times == [(0.0, 1.0), (1.0, 1.0)]


def test_numbers_that_flicker_are_not_shown() -> None:
    cues = Cues(vtt=False)
    made = b"".join(cues.add(number / 25, 1 + number % 2) for number in range(50)) + cues.end(2.0)
    assert made.count(b"-->") <= 4


def test_no_frames_no_file(tmp_path) -> None:
    assert written(tmp_path / "a.srt", []) == ""
    assert not list(tmp_path.iterdir())


def test_hours() -> None:
    cues = Cues(vtt=True)
    cues.add(3600.0 * 27 + 61.5, 3)
    assert b"27:01:01.500 --> 27:01:02.000\n3 people" in cues.end(3600.0 * 27 + 62.0)
