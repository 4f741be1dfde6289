"""What the flags ``--publish``, ``--push``, ``--webhook`` and ``--virtual-camera`` ask for, checked and then built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.errors import SettingsError
from pipeline.live.outputs import SinkWorker
from pipeline.live.settings import LiveSettings
from pipeline.messages import FrameResult
from pipeline.publish.lines import TcpLink, WebSocketLink, require_websockets
from pipeline.publish.mqtt import MqttLink, require_paho, topic_of
from pipeline.publish.push import PushLink, PushOptions, check_push
from pipeline.publish.reconnect import Link, ReconnectingSink
from pipeline.publish.target import PUBLISH_PORTS, PUSH_PORTS, WEBHOOK_PORTS, Target, parse_target
from pipeline.publish.virtual_camera import VirtualCameraSink, require_pyvirtualcam
from pipeline.publish.webhook import WebhookSink

LINES_QUEUE: Final = 64
PICTURES_QUEUE: Final = 8
EVENTS_QUEUE: Final = 256  # results with events: a web server that is away for minutes loses none of a usual scene
MAX_TARGETS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Targets of a run, checked; nothing is opened yet.

    Attributes:
        publish: get the lines of all streams.
        push: get the pictures; an address with ``{stream}`` in it is one for each stream.
        webhooks: get the events of zones.
        virtual_camera: device that shows stream 0; None: there is none.
    """

    publish: tuple[Target, ...]
    push: tuple[Target, ...]
    webhooks: tuple[Target, ...]
    virtual_camera: str | None
    push_options: PushOptions

    @property
    def want_pictures(self) -> bool:
        """Whether people are to be drawn."""
        return bool(self.push) or self.virtual_camera is not None

    def shared_workers(self) -> list[SinkWorker]:
        """Sinks of the results of all streams; their threads run."""
        workers = [
            SinkWorker(_publishing_sink(target), f"publish {target.name}", capacity=LINES_QUEUE)
            for target in self.publish
        ]
        for target in self.webhooks:
            sink = WebhookSink(target)
            workers.append(SinkWorker(sink, f"webhook {target.name}", capacity=EVENTS_QUEUE, wants=sink.wants))
        return workers

    def workers_of(self, stream: int) -> list[SinkWorker]:
        """Sinks of one stream; their threads run."""
        workers = []
        for target in self.push:
            own = target.of_stream(stream)
            workers.append(
                SinkWorker(_pushing_sink(own, self.push_options), f"push {own.name}", capacity=PICTURES_QUEUE)
            )
        if self.virtual_camera is not None and stream == 0:
            sink = VirtualCameraSink(self.virtual_camera)
            workers.append(SinkWorker(sink, sink.name, capacity=1))
        return workers


def read_outputs(settings: LiveSettings, *, streams: int, zones: int) -> Outputs:
    """Check the flags.

    Args:
        settings: of the run.
        streams: how many there are.
        zones: how many there are.

    Raises:
        SettingsError: an address cannot be, a library is missing, or a flag lacks its company.
    """
    publish = _targets(settings.publish, "--publish", PUBLISH_PORTS)
    for target in publish:
        if target.scheme in {"ws", "wss"}:
            require_websockets()
        elif target.scheme in {"mqtt", "mqtts"}:
            require_paho()
            topic_of(target)
    push = _targets(settings.push, "--push", PUSH_PORTS)
    for target in push:
        check_push(target)
        if streams > 1 and not target.several:
            raise SettingsError(
                f"--push {target.name}: {streams} sources need an address each: write {{stream}} where it shall have "
                "the number of the source"
            )
    webhooks = _targets(settings.webhook, "--webhook", WEBHOOK_PORTS)
    if webhooks and not zones:
        raise SettingsError("--webhook tells of zones: give some with --zone or --zones")
    if settings.virtual_camera is not None:
        require_pyvirtualcam()
    return Outputs(
        publish=publish,
        push=push,
        webhooks=webhooks,
        virtual_camera=settings.virtual_camera,
        push_options=PushOptions(preset=settings.video_preset, crf=settings.video_crf, kbps=settings.push_kbps),
    )


def _targets(texts: Sequence[str], flag: str, ports: dict[str, int]) -> tuple[Target, ...]:
    if len(texts) > MAX_TARGETS:
        raise SettingsError(f"{flag}: expected at most {MAX_TARGETS} addresses, got {len(texts)}")
    return tuple(parse_target(text, flag=flag, ports=ports) for text in texts)


def _publishing_sink(target: Target) -> ReconnectingSink:
    def connect(_result: FrameResult) -> Link:
        if target.scheme == "tcp":
            return TcpLink(target)
        return WebSocketLink(target) if target.scheme in {"ws", "wss"} else MqttLink(target)

    return ReconnectingSink(target, connect)


def _pushing_sink(target: Target, options: PushOptions) -> ReconnectingSink:
    def connect(result: FrameResult) -> Link:
        return PushLink(target, result, options, stopped=sink.is_stopped)

    sink = ReconnectingSink(target, connect)
    return sink
