"""WebRTC for real: aiortc, with our PyAV, as the server and as the browser. Chromium is in tests/integration."""

from __future__ import annotations

import asyncio
import re
import threading

import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from hypothesis import given
from hypothesis import strategies as st

from pipeline.serve import webrtc
from pipeline.serve.webrtc import BadOffer, with_address
from tests.pipeline.serve.held_run import result_of, wait_for

pytestmark = pytest.mark.timeout(300)
LEFT = (10, 20, 60, 110)
HOSTILE = "a=candidate:1 1 {} 2122 {} {} typ {}"


async def offer_of(videos: int, codec: str = "VP8") -> tuple[RTCPeerConnection, str]:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    codecs = [one for one in RTCRtpSender.getCapabilities("video").codecs if codec in one.mimeType]
    for _ in range(videos):
        connection.addTransceiver("video", direction="recvonly").setCodecPreferences(codecs)
    await connection.setLocalDescription(await connection.createOffer())
    return connection, connection.localDescription.sdp


@pytest.mark.parametrize("codec", ["VP8", "H264"])
def test_pictures_arrive_decoded_and_switches_act(serve, codec) -> None:
    held = serve(streams=2)
    held.feed(lambda index: result_of(index, LEFT, stream=index % 2))
    client = held.client().with_csrf()
    viewer = client("POST", "/api/viewers").json["viewer"]

    async def watch() -> None:
        connection, sdp = await offer_of(2, codec)
        answer = await asyncio.to_thread(
            client, "POST", f"/api/viewers/{viewer}/webrtc", {"sdp": sdp, "streams": [0, 1]}
        )
        assert answer.status == 200, answer.body
        hosts = set(re.findall(r"a=candidate:\S+ \d udp \d+ (\S+)", answer.json["sdp"]))
        assert hosts == {"127.0.0.1"}  # there where the page is served, and nowhere else
        await connection.setRemoteDescription(RTCSessionDescription(sdp=answer.json["sdp"], type="answer"))
        tracks = [transceiver.receiver.track for transceiver in connection.getTransceivers()]
        for track in tracks:
            for _ in range(3):
                frame = await asyncio.wait_for(track.recv(), 120)
            image = frame.to_ndarray(format="rgb24")
            assert image.shape == (120, 160, 3)
            assert np.abs(image[2:12, 100:].astype(int) - 90).mean() < 8
        options = {"background": "green", "mask": False, "ids": False, "skeleton": False}
        await asyncio.to_thread(client, "PATCH", f"/api/viewers/{viewer}/streams/0", options)

        async def turns_green() -> None:
            while True:
                frame = await tracks[0].recv()
                if frame.to_ndarray(format="rgb24")[2:12, 100:, 1].mean() > 150:
                    return

        await asyncio.wait_for(turns_green(), 120)
        await connection.close()

    asyncio.run(watch())
    answer = client("DELETE", f"/api/viewers/{viewer}")
    assert answer.status == 204
    wait_for(lambda: held.run.watched == 0, "nobody watches any more")
    wait_for(
        lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("view of")],
        "no thread paints",
    )


def test_who_offers_and_never_comes_is_let_go(serve, monkeypatch) -> None:
    monkeypatch.setattr(webrtc, "CONNECT_S", 0.5)
    held = serve(streams=1)
    held.feed(result_of)
    client = held.client().with_csrf()
    viewer = client("POST", "/api/viewers").json["viewer"]

    async def offer() -> str:
        connection, sdp = await offer_of(1)
        await connection.close()
        return sdp

    sdp = asyncio.run(offer())
    for _ in range(3):  # a new offer ends the one before
        assert client("POST", f"/api/viewers/{viewer}/webrtc", {"sdp": sdp, "streams": [0]}).status == 200
    wait_for(lambda: not any(view.watches for view in _viewer(held, viewer).views), "its tracks are freed")


def _viewer(held, viewer: str):
    import gc

    from pipeline.serve.feeds import Viewer

    return next(one for one in gc.get_objects() if isinstance(one, Viewer) and one.id == viewer)


def test_offers_that_do_not_fit(serve) -> None:
    client = serve(streams=2).client().with_csrf()
    viewer = client("POST", "/api/viewers").json["viewer"]

    async def offer() -> str:
        connection, sdp = await offer_of(2)
        await connection.close()
        return sdp

    sdp = asyncio.run(offer())
    for body, said in (
        ({"sdp": sdp, "streams": [0]}, "must ask for 1 videos, it asks for 2"),
        ({"sdp": sdp, "streams": [0, 2]}, "different numbers from 0 to 1"),
        ({"sdp": sdp, "streams": [0, 0]}, "different numbers from 0 to 1"),
        ({"sdp": sdp, "streams": []}, "list of numbers"),
        ({"sdp": sdp, "streams": [True]}, "list of numbers"),
        ({"sdp": 1, "streams": [0]}, "sdp must be a text"),
        ({"sdp": sdp.replace("m=video", "m=audio"), "streams": [0, 1]}, "videos only"),
        ({"sdp": sdp.replace("m=video", "m=application"), "streams": [0, 1]}, "videos only"),
        ({"sdp": "hello", "streams": [0, 1]}, "session description"),
        ({"sdp": "v=0\r\n", "streams": [0, 1]}, ""),
        ({"sdp": "v=0" + "x" * 60_500, "streams": [0, 1]}, "must not be longer"),
    ):
        answer = client("POST", f"/api/viewers/{viewer}/webrtc", body)
        assert answer.status == 400, body
        assert said in answer.error


def test_packets_go_to_whoever_asked_and_to_nobody_else() -> None:
    offered = "\r\n".join(
        [
            "v=0",
            "m=video 9 UDP/TLS/RTP/SAVPF 96",
            "c=IN IP4 169.254.169.254",
            HOSTILE.format("udp", "10.0.0.1", "53", "host"),
            HOSTILE.format("udp", "8a7b.local", "40000", "host"),
            HOSTILE.format("udp", "evil.example", "40001", "host") + " generation 0",
            HOSTILE.format("udp", "10.0.0.1", "99999", "host"),
            HOSTILE.format("tcp", "10.0.0.1", "80", "host"),
            HOSTILE.format("udp", "1.2.3.4", "3478", "srflx raddr 0.0.0.0 rport 0"),
            HOSTILE.format("udp", "1.2.3.4", "3478", "relay"),
            "a=rtcp:53 IN IP4 10.0.0.1",
            "a=remote-candidates:1 10.0.0.1 53",
            "",
        ]
    )
    sent = with_address(offered, "192.0.2.7")
    assert re.findall(r"a=candidate:.*", sent.replace("\r", "")) == [
        f"a=candidate:1 1 udp 2122 192.0.2.7 {port} typ host" for port in (53, 40000, 40001)
    ]
    for host in ("10.0.0.1", "169.254", "evil", "local", "1.2.3.4", "a=rtcp:", "remote-candidates"):
        assert host not in sent
    assert "c=IN IP6 ::" in with_address(offered, "fd00::1")


@given(st.lists(st.text(alphabet="acdinm=:. udp09hostyP4v\r\n-", max_size=60), max_size=12))
def test_no_offer_names_another_host(lines) -> None:
    sdp = "v=0\r\n" + "\r\n".join(lines)
    try:
        sent = with_address(sdp, "192.0.2.7")
    except BadOffer:
        return
    for line in sent.split("\r\n"):
        if line.startswith("a=candidate"):
            assert " 192.0.2.7 " in line
        if line.startswith("c="):
            assert line == "c=IN IP4 0.0.0.0"


def test_without_aiortc_the_reason_is_said(serve, monkeypatch) -> None:
    monkeypatch.setattr(webrtc, "missing", lambda: f"aiortc is not there: {webrtc.INSTALL}")
    client = serve().client().with_csrf()
    assert "pip install" in client("GET", "/api/state").json["webrtc"]
    viewer = client("POST", "/api/viewers").json["viewer"]
    answer = client("POST", f"/api/viewers/{viewer}/webrtc", {"sdp": "v=0", "streams": [0]})
    assert answer.status == 501
    assert "pip install 'pose2seg-live[serve]'" in answer.error
