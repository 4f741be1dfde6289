from __future__ import annotations

import contextlib
import logging
import socket
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.stage1_decode import CameraSource, FileSource, StreamSource, find_files, open_source, read_image
from pipeline.video_input import VideoInput
from tests.clips import number_of, write_empty_video, write_images, write_video

pytestmark = pytest.mark.timeout(60)


def read_all(source):
    frames = list(source.frames())
    source.close()
    return frames


def numbers(frames) -> list[int]:
    return [number_of(frame.image) for frame in frames]


def test_a_video_file(tmp_path) -> None:
    source = open_source(str(write_video(tmp_path / "a.mp4", 20)))
    assert (source.live, source.still_images, source.frame_total) == (False, False, 20)
    assert source.name.endswith("a.mp4")
    frames = read_all(source)
    assert numbers(frames) == [frame.index for frame in frames] == list(range(20))
    assert [frame.pts_s for frame in frames] == pytest.approx([i / 25 for i in range(20)])
    assert {frame.clip for frame in frames} == {0}
    assert source.frames_lost == 0


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("gray.mkv", "ffv1", "gray"),
        ("gray10.mkv", "ffv1", "gray10le"),
        ("ten.mkv", "ffv1", "yuv420p10le"),
        ("ten444.mkv", "ffv1", "yuv444p10le"),
        ("full.avi", "mjpeg", "yuvj420p"),
        ("rgb.mkv", "ffv1", "bgr0"),
        ("x.ts", "libx264", "yuv420p"),
        ("old.avi", "mpeg4", "yuv420p"),
    ],
)
def test_pixel_formats_and_containers(tmp_path, name, codec, pixel_format) -> None:
    path = write_video(tmp_path / name, 6, codec=codec, pixel_format=pixel_format)
    frames = read_all(open_source(str(path)))
    assert numbers(frames) == list(range(6))
    assert frames[0].image.dtype == np.uint8
    colors = frames[0].image[50, 20].astype(int)
    if pixel_format.startswith("gray"):
        assert np.ptp(colors) <= 2
    else:
        assert colors[0] > 200 and colors[1] < 60 and colors[2] > 200  # magenta stays magenta


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (2, 33), (64, 7680), (7680, 64)])
def test_unusual_sizes(tmp_path, height, width) -> None:
    path = write_video(tmp_path / "a.mkv", 3, codec="ffv1", pixel_format="bgr0", height=height, width=width)
    frames = read_all(open_source(str(path)))
    assert [frame.image.shape for frame in frames] == [(height, width, 3)] * 3


@pytest.mark.parametrize("rotation", [90, 180, 270, -90])
def test_rotation_marks_are_applied(tmp_path, rotation) -> None:
    frames = read_all(open_source(str(write_video(tmp_path / "a.mp4", 4, rotation=rotation))))
    turned_back = [np.rot90(frame.image, -rotation // 90) for frame in frames]
    assert [number_of(image) for image in turned_back] == [0, 1, 2, 3]
    assert frames[0].image.shape == ((96, 128, 3) if rotation == 180 else (128, 96, 3))
    assert frames[0].image.flags.c_contiguous


def test_variable_frame_rate_keeps_its_times(tmp_path) -> None:
    times_ms = [0, 10, 50, 300, 310, 1000]
    frames = read_all(open_source(str(write_video(tmp_path / "a.mp4", 6, times_ms=times_ms))))
    assert [round(frame.pts_s * 1000) for frame in frames] == times_ms


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
def test_a_cut_video_gives_what_decodes_and_counts_the_rest(tmp_path, caplog, name) -> None:
    codec, pixel_format = ("mjpeg", "yuvj420p") if name == "a.avi" else ("libx264", "yuv420p")
    path = write_video(tmp_path / name, 100, codec=codec, pixel_format=pixel_format)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    source = open_source(str(path))
    with caplog.at_level(logging.WARNING):
        frames = read_all(source)
    assert 30 < len(frames) < 80
    assert numbers(frames) == list(range(len(frames)))
    assert source.frames_lost == pytest.approx(100 - len(frames), abs=2 if name == "a.mkv" else 0)
    assert f"frames lost, {len(frames)} decoded: the file is cut or damaged" in caplog.text


def test_a_hole_in_a_video_costs_only_the_frames_in_it(tmp_path) -> None:
    path = write_video(tmp_path / "a.mp4", 100)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    path.write_bytes(data)
    source = open_source(str(path))
    frames = read_all(source)
    assert 60 < len(frames) < 100
    assert source.frames_lost == 100 - len(frames)
    assert numbers(frames)[-1] == 99


def test_a_whole_video_loses_nothing_when_the_run_stops_early(tmp_path, caplog) -> None:
    source = open_source(str(write_video(tmp_path / "a.mp4", 20)))
    frames = source.frames()
    next(frames)
    source.stop()
    assert list(frames) == []
    source.close()
    assert source.frames_lost == 0
    assert not caplog.records


BAD_FILES = {
    "missing": (None, "no such file or folder"),
    "text": (b"hello world\n" * 100, "expected a video, found something else"),
    "empty": (b"", "expected a video, found something else"),
    "zeros": (bytes(4096), "expected a video, found something else"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_that_are_no_video(tmp_path, kind) -> None:
    content, message = BAD_FILES[kind]
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_an_mp4_cut_before_its_index(tmp_path) -> None:
    path = write_video(tmp_path / "a.mp4", 50, faststart=False)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SourceError, match="cut before its index"):
        open_source(str(path))


def test_a_video_without_frames(tmp_path) -> None:
    source = open_source(str(write_empty_video(tmp_path / "a.avi")))
    with pytest.raises(SourceError, match="expected at least one video frame"):
        list(source.frames())
    source.close()


def test_sound_is_no_video(tmp_path) -> None:
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(4000))
    (tmp_path / "a.wav").rename(tmp_path / "a.mp4")
    with pytest.raises(SourceError, match="expected a video stream, found audio"):
        open_source(str(tmp_path / "a.mp4"))


def test_a_folder_of_images_in_natural_order(tmp_path) -> None:
    folder = write_images(tmp_path / "in", ["i1.png", "i2.png", "i10.jpg"])
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.png").write_bytes(b"x")
    source = open_source(str(folder), image_fps=4.0)
    assert (source.still_images, source.frame_total, source.live) == (True, 3, False)
    frames = read_all(source)
    assert numbers(frames) == [0, 1, 2]
    assert [frame.source.rsplit("/", 1)[1] for frame in frames] == ["i1.png", "i2.png", "i10.jpg"]
    assert [frame.clip for frame in frames] == [0, 1, 2]  # unrelated pictures
    assert [frame.pts_s for frame in frames] == [0.0, 0.25, 0.5]


def test_a_glob(tmp_path) -> None:
    folder = write_images(tmp_path / "in", ["a1.png", "a2.png", "b1.png"])
    assert numbers(read_all(open_source(str(folder / "a*.png")))) == [0, 1]
    assert len(find_files(str(tmp_path / "**" / "*.png"))) == 3
    with pytest.raises(SourceError, match="matches no image and no video"):
        open_source(str(folder / "c*.png"))


def test_a_name_with_glob_signs_is_a_file_first(tmp_path) -> None:
    folder = write_images(tmp_path / "in", ["a[1].png"])
    assert numbers(read_all(open_source(str(folder / "a[1].png")))) == [0]


def test_names_that_look_like_protocols_or_options(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_video(tmp_path / "plain.mp4", 2)
    path.rename(tmp_path / "concat:b.mp4")
    assert len(read_all(open_source("concat:b.mp4"))) == 2


def test_a_folder_of_videos(tmp_path) -> None:
    write_video(tmp_path / "a.mp4", 3)
    write_video(tmp_path / "b.mp4", 4)
    source = open_source(str(tmp_path))
    frames = read_all(source)
    assert [(frame.clip, frame.index) for frame in frames] == [*((0, i) for i in range(3)), *((1, i) for i in range(4))]
    assert source.frame_total is None
    assert source.name.endswith("a.mp4 and 1 more")


def test_bad_files_of_many_are_left_out(tmp_path, caplog) -> None:
    folder = write_images(tmp_path, ["a.png", "c.png"])
    (folder / "b.png").write_text("no picture")
    (folder / "0.mp4").write_text("no video")
    source = open_source(str(folder))
    with caplog.at_level(logging.WARNING):
        frames = read_all(source)
    assert numbers(frames) == [0, 1]
    assert source.frames_lost == 1
    assert sum("left out:" in record.message for record in caplog.records) == 2


def test_nothing_but_bad_files(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no picture")
    with pytest.raises(SourceError, match="none of 2 files could be read"):
        list(open_source(str(tmp_path)).frames())


def test_a_folder_without_images(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SourceError, match=r"found none among 1 entries: file names must end in \.jpg"):
        open_source(str(tmp_path))


def test_images_of_many_kinds(tmp_path) -> None:
    gray = np.full((9, 7), 130, np.uint8)
    cv2.imwrite(str(tmp_path / "gray.png"), gray)
    cv2.imwrite(str(tmp_path / "deep.png"), gray.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.full((9, 7, 4), 130, np.uint8))
    for name in ("gray.png", "deep.png", "alpha.png"):
        image = read_image(str(tmp_path / name))
        assert image.shape == (9, 7, 3)
        assert np.abs(image.astype(int) - 130).max() <= 1, name
    with pytest.raises(SourceError, match="cannot be read"):
        read_image(str(tmp_path / "missing.png"))


def test_a_single_bad_image(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SourceError, match="expected an image"):
        list(open_source(str(tmp_path / "a.png")).frames())


def test_a_missing_camera() -> None:
    with pytest.raises(SourceError, match="camera 97"):
        open_source("97")


@pytest.mark.parametrize("address", ["ftp://host/a.mp4", "file:///etc/passwd", "concat://a|b", "gopher://x"])
def test_other_addresses_are_refused(address) -> None:
    with pytest.raises(SourceError, match=r"expected an address starting with rtsp://, rtsps://, http://, https://"):
        open_source(address)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_errors_of_addresses_hold_no_password(scheme) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(f"{scheme}://admin:hunter2@127.0.0.1:{closed_port()}/live?token=abc", timeout_s=3)
    error: BaseException | None = caught.value
    assert "hunter2" not in str(error) and "abc" not in str(error)
    assert "***@127.0.0.1" in str(error)
    assert error is not None and error.__cause__ is None and error.__suppress_context__


def test_a_silent_server_is_given_up() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        with pytest.raises(SourceError, match="no answer within the time limit"):
            open_source(f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4", timeout_s=0.5)


class OneFileServer:
    """Serves bytes over HTTP, with or without saying how many, from a thread."""

    def __init__(self, data: bytes, *, say_length: bool) -> None:
        import http.server

        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "video/MP2T")
                if outer.say_length:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the reader has seen enough
                    self.wfile.write(data)

            def log_message(self, *arguments) -> None:
                pass

        self.say_length = say_length
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_address[1]}/a.ts"

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


@pytest.mark.parametrize(("name", "say_length", "kind"), [("a.ts", False, StreamSource), ("a.mp4", True, FileSource)])
def test_a_video_over_http(tmp_path, name, say_length, kind) -> None:
    """A file of known length is a file, frames wait; without a length it counts as live. Both come whole."""
    data = write_video(tmp_path / name, 12).read_bytes()
    with OneFileServer(data, say_length=say_length) as address:
        source = open_source(address, timeout_s=5)
        assert isinstance(source, kind)
        frames = read_all(source)
    assert numbers(frames) == list(range(12))
    assert frames[0].source == address
    assert source.frames_lost == 0


def test_camera_class_reads_until_told_to_stop(monkeypatch) -> None:
    class FakeCapture:
        def __init__(self, number) -> None:
            self.released = False
            self.left = 5

        def isOpened(self) -> bool:  # noqa: N802  OpenCV's name
            return True

        def read(self):
            self.left -= 1
            return (True, np.full((4, 6, 3), (1, 2, 3), np.uint8)) if self.left >= 0 else (False, None)

        def release(self) -> None:
            self.released = True

    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr("pipeline.stage1_decode.os.path.exists", lambda path: True)
    camera = CameraSource(0)
    frames = camera.frames()
    first = next(frames)
    assert first.image[0, 0].tolist() == [3, 2, 1]
    camera.stop()
    assert list(frames) == []
    camera.close()
    assert camera._capture.released

    camera = CameraSource(0)
    with pytest.raises(SourceError, match="gave no picture after 5 frames"):
        list(camera.frames())


class PlanesDecoder:
    """Plays a GPU's decoder: takes planes through DLPack, remembers how they were described."""

    device_type = "cuda"
    device = "0"

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...], bool, bool]] = []

    def options(self) -> dict[str, str]:
        return {"primary_ctx": "1"}

    def adopt(self, luma, chroma, *, full_range: bool, bt709: bool):
        planes = np.from_dlpack(luma), np.from_dlpack(chroma)
        self.seen.append((planes[0].shape, planes[1].shape, full_range, bt709))
        return planes


def test_a_gpu_decoder_that_does_not_start_leaves_the_work_to_the_cpu(tmp_path, caplog) -> None:
    """There is a driver on no machine that runs this test: FFmpeg refuses, for real."""
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has the driver whose absence is tested")
    path = str(write_video(tmp_path / "a.mp4", 5))
    with caplog.at_level("INFO"):
        source = open_source(path, decoder=PlanesDecoder())
    assert numbers(read_all(source)) == [0, 1, 2, 3, 4]
    assert "decoded on the CPU: cuda" in caplog.text
    with pytest.raises(SourceError, match=r"cannot be decoded on the GPU.*use --decode cpu"):
        open_source(path, decoder=PlanesDecoder(), decoder_required=True)
    with pytest.raises(SourceError, match="no such file"):
        VideoInput(str(tmp_path / "b.mp4"), timeout_s=1, decoder=PlanesDecoder())
