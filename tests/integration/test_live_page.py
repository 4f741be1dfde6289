"""`pose2seg live --serve` as a process, seen in a real Chromium: pictures move, clicks select, phones and dark fit."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.clips import number_of, read_video, write_video

pytestmark = [pytest.mark.timeout(600), pytest.mark.chromium]
ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 150.0  # on a busy machine
WAIT_MS = WAIT_S * 1e3
#: Without the flags about the background, it asks hosts of its maker's at every start.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
#: What is on the screen of the page's first picture: size and a small copy of its pixels, from <video> or <canvas>.
LOOK = """() => {
  const shown = [...document.querySelectorAll('video, canvas')].find((one) => !one.hidden);
  const width = shown?.videoWidth ?? shown?.width ?? 0;
  if (!width || shown.readyState < 2) { return null; }
  const canvas = document.createElement('canvas');
  canvas.width = 128; canvas.height = 96;
  const context = canvas.getContext('2d');
  context.drawImage(shown, 0, 0, 128, 96);
  return [...context.getImageData(0, 0, 128, 96).data];
}"""


class LiveProcess:
    """The command, its page's address and what it printed."""

    def __init__(self, model: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "run_stream.py"), "live", *arguments, "--model", str(model)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._new: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.url = self.said(r"page: (\S+)")[1]
        except BaseException:
            self.stop()
            raise
        self.base = re.match(r"http://[^/]+", self.url)[0]

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            self._new.put(line)

    def said(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                if found := re.search(pattern, self._new.get(timeout=1)):
                    return found
            assert self.process.poll() is None, self.lines
        pytest.fail(f"not said within {WAIT_S:.0f} s: {pattern}; {self.lines}")

    def get(self, path: str, headers: dict[str, str] | None = None) -> str:
        request = urllib.request.Request(self.base + path, headers=headers or {})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()

    def stop(self) -> float:
        """SIGTERM; how long it took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self._reader.join(10)
            self.process.stderr.close()
        return time.monotonic() - started


ROUND = 250  # pictures


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Somebody who walks past, 25 pictures a second, again and again for ten minutes."""
    folder = tmp_path_factory.mktemp("clip")
    once = write_video(folder / "once.mp4", ROUND, height=192, width=256, keyframe_every=25)
    with av.open(str(folder / "walk.mp4"), "w") as output:
        stream, begins = None, 0
        for _ in range(600 * 25 // ROUND):
            with av.open(str(once)) as source:
                video = source.streams.video[0]
                stream = stream if stream is not None else output.add_stream_from_template(video)
                ends = begins
                for packet in source.demux(video):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + begins, packet.dts + begins
                        ends = max(ends, packet.pts + packet.duration)
                        packet.stream = stream
                        output.mux(packet)
                begins = ends
    return folder / "walk.mp4"


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def live(model_folder, clip, output_dir) -> Iterator[LiveProcess]:
    process = LiveProcess(
        model_folder,
        *(str(clip), "--realtime", "--serve", "127.0.0.1:0", "--threads", "1"),
        *("--output-dir", str(output_dir), "--record", "off", "--keep-free-gb", "0"),
    )
    yield process
    process.stop()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        yield started
        started.close()


class Tab:
    """One page in a browser of its own kind; what it complains about is kept."""

    def __init__(self, browser, **options) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(WAIT_MS)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.context.close()

    def open(self, url: str, way: str | None = None) -> None:
        self.page.goto(url)
        if way is not None:
            self.page.wait_for_selector(f"html[data-pictures={way}]")

    def wait(self, expression: str) -> None:
        """Until it is true; the page's policy lets nobody run texts inside it, so it is asked from outside."""
        deadline = time.monotonic() + WAIT_S
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            self.page.wait_for_timeout(100)

    def look(self) -> np.ndarray:
        """(96, 128, 3) uint8 RGB of the first picture."""
        deadline = time.monotonic() + WAIT_S
        while (found := self.page.evaluate(LOOK)) is None:
            assert time.monotonic() < deadline, "no picture"
            self.page.wait_for_timeout(100)
        return np.array(found, np.uint8).reshape(96, 128, 4)[:, :, :3]

    def look_until(self, condition, said: str) -> np.ndarray:
        deadline = time.monotonic() + WAIT_S
        while not condition(seen := self.look()):
            assert time.monotonic() < deadline, f"never seen: {said}"
            self.page.wait_for_timeout(100)
        return seen


def is_green(picture: np.ndarray) -> bool:
    red, green, blue = picture[86:94, 2:20].reshape(-1, 3).mean(axis=0)
    return green > red + 80 and green > blue + 50


@pytest.mark.parametrize("way", ["webrtc", "mjpeg"])
def test_pictures_move_and_switches_act(live, browser, way) -> None:
    with Tab(browser, viewport={"width": 1280, "height": 800}) as tab:
        tab.open(live.url + ("?pictures=mjpeg" if way == "mjpeg" else ""), way)
        first = number_of(tab.look())
        seen = {first}
        tab.look_until(lambda picture: len(seen.add(number_of(picture)) or seen) >= 5, "five different pictures")
        if way == "webrtc":
            assert tab.page.evaluate("document.querySelector('video').currentTime") > 0
            assert tab.page.evaluate("document.querySelector('canvas').hidden")
        page = tab.page
        for chip in ("mask", "skeleton", "ids"):
            page.click(f"button[data-option={chip}]")
            page.wait_for_selector(f"button[data-option={chip}][aria-pressed=false]")
        page.select_option("select", "green")
        tab.look_until(is_green, "a green background")
        assert page.inner_text(".people") == "1"
        assert page.inner_text(".state-text").lower() == "live"
        tab.wait("document.querySelector('.spark-fps .line')?.getAttribute('d').length > 10")
        tab.wait("Number(document.querySelector('.fps').textContent) > 0")
        assert int(page.inner_text(".latency")) >= 0
        assert tab.complaints == []


def test_webrtc_that_is_blocked_falls_back_to_mjpeg(live, browser) -> None:
    with Tab(browser) as tab:
        tab.page.add_init_script("window.RTCPeerConnection = class { constructor() { throw new Error('blocked'); } };")
        tab.open(live.url, "mjpeg")
        seen = set()
        tab.look_until(lambda picture: len(seen.add(number_of(picture)) or seen) >= 3, "three different pictures")


def test_a_click_selects_a_person_and_blurs_or_frees_them(live, browser) -> None:
    with Tab(browser, viewport={"width": 1280, "height": 800}) as tab:
        tab.open(live.url, "webrtc")
        page = tab.page
        for chip in ("mask", "skeleton", "ids"):
            page.click(f"button[data-option={chip}]")
        whites = lambda picture: int((picture[14:] > 215).all(axis=2).sum())  # noqa: E731
        tab.look_until(lambda picture: whites(picture) == 0, "no line while nobody is selected")
        box = page.locator(".stage").bounding_box()
        deadline, chosen = time.monotonic() + WAIT_S, math.inf
        while whites(picture := tab.look()) <= 20:  # a white line around the selected person
            assert time.monotonic() < deadline, "never seen: somebody selected, with a line around them"
            selected = page.is_visible(".selection")
            if selected and time.monotonic() > chosen + 3:  # on a busy machine they may have got another id since
                page.click(".selection")
                page.wait_for_selector(".selection", state="hidden")
                continue
            magenta = (picture[:, :, 0] > 180) & (picture[:, :, 1] < 90) & (picture[:, :, 2] > 180)
            if not selected and magenta.any():  # somebody who walks may be missed
                row, column = (round(float(values.mean())) for values in np.nonzero(magenta))
                page.mouse.click(
                    box["x"] + (column + 0.5) / 128 * box["width"], box["y"] + (row + 0.5) / 96 * box["height"]
                )
                chosen = time.monotonic()
            page.wait_for_timeout(500)
        assert re.fullmatch(r"Person \d+", page.inner_text(".selection"))
        page.click("button[data-option=blur_others]")
        page.wait_for_selector("button[data-option=blur_others][aria-pressed=true]")
        page.click(".selection")
        page.wait_for_selector(".selection", state="hidden")
        tab.look_until(lambda picture: whites(picture) == 0, "the line is gone")
        assert tab.complaints == []


def test_snapshot_and_recording(live, browser, output_dir, tmp_path) -> None:
    with Tab(browser) as tab:
        tab.open(live.url, "webrtc")
        tab.look()
        with tab.page.expect_download() as download:
            tab.page.click(".snapshot")
        download.value.save_as(tmp_path / "snapshot.png")
        image = cv2.imread(str(tmp_path / "snapshot.png"), cv2.IMREAD_COLOR_RGB)
        assert image.shape == (192, 256, 3)
        assert re.fullmatch(r"stream-00-[\d-]+\.png", download.value.suggested_filename)
        tab.page.click(".record")
        tab.page.wait_for_selector(".record[aria-pressed=true]")
        tab.page.wait_for_selector(".rec:not([hidden])")
        deadline = time.monotonic() + WAIT_S
        while json.loads(live.get("/api/state"))["streams"][0]["recording"]["frames"] < 20:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        tab.page.click(".record")
        tab.page.wait_for_selector(".record[aria-pressed=false]")
        (path,) = output_dir.rglob("*.mp4")
        assert path.parent == output_dir / "stream-00"
        shown = [number_of(picture) for picture in read_video(path)[0]]
        assert len(shown) >= 20
        steps = [(after - before) % ROUND for before, after in itertools.pairwise(shown)]
        assert all(0 < step < ROUND / 2 for step in steps)
        assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_in_both_colours(live, browser, tmp_path, scheme) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
    with Tab(browser, color_scheme=scheme, **phone) as tab:
        tab.open(live.url, "webrtc")
        tab.look()
        page = tab.page
        page.click("summary")  # all figures
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        outside = page.evaluate(
            """[...document.querySelectorAll('main *, header *')].filter((one) => {
                const box = one.getBoundingClientRect();
                return box.width && (box.right > innerWidth + 1 || box.left < -1)
                    && !one.closest('.unseen, svg, .name');
            }).map((one) => one.className || one.tagName)"""
        )
        assert outside == []
        small = page.evaluate(
            """[...document.querySelectorAll('.panel button, .panel select')].filter((one) =>
                (one.closest('label') ?? one).getBoundingClientRect().height < 40).map((one) => one.className)"""
        )
        assert small == []  # a finger needs room
        page.tap("button[data-option=skeleton]")
        page.wait_for_selector("button[data-option=skeleton][aria-pressed=false]")
        path = tmp_path / "phone.png"
        page.screenshot(path=path)
        shot = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert shot.shape == (1688, 780)
        ground = float(np.median(shot[-200:]))
        assert ground < 60 if scheme == "dark" else ground > 200
        assert tab.complaints == []


def test_the_token_is_asked_for_and_taken(model_folder, clip, browser, tmp_path) -> None:
    live = LiveProcess(model_folder, str(clip), "--realtime", "--serve", "0.0.0.0:0", "--threads", "1")
    try:
        token = live.url.partition("#token=")[2]
        assert len(token) >= 43
        assert "is not encrypted" in live.said(r"WARNING .*")[0]
        with Tab(browser) as tab:
            tab.open(live.base + "/")
            page = tab.page
            page.wait_for_selector("#login:not([hidden])")
            page.fill("#token", "a wrong one, by far")
            page.click("#login button")
            tab.wait("document.querySelector('#login-error').textContent.includes('wrong token')")
            page.fill("#token", token)
            page.click("#login button")
            page.wait_for_selector("html[data-pictures]")
            tab.look()
            page.click("#log-out")
            page.wait_for_selector("#login:not([hidden])")
            assert page.locator("article").count() == 0
        with Tab(browser) as tab:
            tab.open(live.url)  # the link that was printed
            tab.page.wait_for_selector("html[data-pictures]")
            assert "token" not in tab.page.url
            assert tab.page.evaluate("document.cookie") == ""  # HttpOnly: no script reads it
            cookie = next(one for one in tab.context.cookies() if one["name"] == "pose2seg_session")
            assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
            assert token not in json.dumps(tab.context.storage_state())
        assert "pose2seg_frames_in_total" in live.get("/metrics", {"Authorization": f"Bearer {token}"})
    finally:
        live.stop()
    said = "".join(live.lines)
    assert said.count(token) == 1
    assert "Traceback" not in said


def picture_of(live: LiveProcess, query: str = "") -> np.ndarray:
    """A snapshot; without a viewer as the page shows it at first. The first of its kind waits for compilers."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            with urllib.request.urlopen(f"{live.base}/api/streams/0/snapshot.png{query}", timeout=60) as answer:
                return cv2.imdecode(np.frombuffer(answer.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise


def magentas(picture: np.ndarray) -> int:
    return int(((picture[:, :, 0] > 200) & (picture[:, :, 1] < 60) & (picture[:, :, 2] > 200)).sum())


def test_people_that_the_run_hides_are_hidden_from_viewers_whatever_they_switch(model_folder, clip) -> None:
    live = LiveProcess(
        model_folder, str(clip), "--realtime", "--serve", "127.0.0.1:0", "--threads", "1", "--hide", "blur"
    )
    try:
        headers = {"X-CSRF-Token": json.loads(live.get("/api/session"))["csrf"], "Content-Type": "application/json"}

        def change(method: str, path: str, body: dict | None = None):
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(live.base + path, data=data, headers=headers, method=method)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read())

        deadline = time.monotonic() + WAIT_S
        while json.loads(live.get("/api/state"))["streams"][0]["results"] < 10:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        viewer = change("POST", "/api/viewers")["viewer"]
        bare = {"mask": False, "skeleton": False, "ids": False}
        # Who is selected gets a line along the mask, sharp but drawn over what is hidden: here nobody has that id.
        wishes = (bare, {"background": "dim"}, {"background": "original", "blur_others": True}, {"selected": 999})
        for wish in wishes:
            change("PATCH", f"/api/viewers/{viewer}/streams/0", wish)
            picture = picture_of(live, f"?viewer={viewer}")
            edges = np.abs(np.diff(picture[40:170].astype(int), axis=1)).sum(axis=2)
            assert picture[100].std() > 0  # somebody is there
            # and their outline is not: magenta beside grey differs by 420 (pixelate's blocks may end where they do)
            assert (edges > 400).sum() == 0, wish
    finally:
        live.stop()


def test_a_layer_that_is_shown_in_place_of_people_is_shown_here_too(model_folder, clip) -> None:
    live = LiveProcess(
        model_folder,
        *(str(clip), "--realtime", "--serve", "127.0.0.1:0", "--threads", "1"),
        *("--draw", "background", "--layer-background", "#00b140"),
    )
    try:
        picture = picture_of(live)
        assert np.abs(picture[180, 4].astype(int) - (0, 177, 64)).max() < 3
        assert magentas(picture) > 100
    finally:
        live.stop()


def test_who_watches_does_not_hold_up_the_end(model_folder, clip, browser) -> None:
    live = LiveProcess(model_folder, str(clip), "--realtime", "--serve", "127.0.0.1:0", "--threads", "1")
    with Tab(browser) as tab:
        tab.open(live.url, "webrtc")
        tab.look()
        assert live.stop() < 30
        assert live.process.returncode == 0
        tab.page.wait_for_selector("#banner:not([hidden])")
    assert not any("Traceback" in line for line in live.lines)
