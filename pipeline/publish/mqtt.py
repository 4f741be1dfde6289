"""Results to an MQTT broker (``paho-mqtt``, extra ``publish``).

TOPIC/stream-00/frame     a line for each frame, at most once (QoS 0)
TOPIC/stream-00/event     each enter, leave and dwell of a zone, at least once (QoS 1)
TOPIC/status              online or offline, retained; the broker says offline when we are gone without a word
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import secrets
import threading
from typing import Any, Final

from pipeline.errors import SettingsError, SinkError
from pipeline.messages import FrameResult
from pipeline.publish.lines import line_of
from pipeline.publish.reconnect import CONNECT_S, SEND_S
from pipeline.publish.target import Target

log = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 15
GOODBYE_S: Final = 1.0
DEFAULT_TOPIC: Final = "pose2seg"
_WILDCARDS: Final = ("+", "#", "$")


def topic_of(target: Target) -> str:
    """The first part of all topics: the path of the address.

    Raises:
        SettingsError: it is no topic that can be written to.
    """
    topic = target.url.path.strip("/") or DEFAULT_TOPIC
    if any(sign in target.text.rpartition("@")[2] for sign in _WILDCARDS) or len(topic.encode()) > 1000:
        raise SettingsError(
            f"--publish {target.name}: a topic that is written to holds no +, # or $, and 1000 bytes at most"
        )
    return topic


class MqttLink:
    """One session with a broker. The library's thread keeps it alive; reconnecting is ours."""

    def __init__(self, target: Target) -> None:
        """Connect and say that we are online.

        Raises:
            SinkError: the broker refuses, or does not answer in time.
            OSError: there is none.
        """
        mqtt = require_paho()
        self._topic = topic_of(target)
        self._answered = threading.Event()
        self._refusal = ""
        client = _guarded(mqtt)(
            mqtt.CallbackAPIVersion.VERSION2, client_id=f"pose2seg-{secrets.token_hex(6)}", reconnect_on_failure=False
        )
        client.connect_timeout = CONNECT_S
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_end
        if target.user is not None:
            client.username_pw_set(target.user, target.password)
        if target.scheme == "mqtts":
            client.tls_set()
        client.will_set(f"{self._topic}/status", "offline", qos=1, retain=True)
        self._client = client
        try:
            client.connect(target.host, target.port, keepalive=KEEP_ALIVE_S)
            client.loop_start()
            if not self._answered.wait(CONNECT_S):
                raise SinkError(f"the broker did not answer within {CONNECT_S:g} s")
            if self._refusal:
                raise SinkError(f"the broker refused: {self._refusal}")
            self._publish("status", "online", qos=1, retain=True)
        except BaseException:
            self.close()
            raise

    def send(self, result: FrameResult) -> None:
        """Publish a frame, and its events.

        Raises:
            SinkError: the session is over, or the broker takes nothing.
        """
        folder = f"stream-{result.frame.stream:02d}"
        for event in result.events or ():
            self._publish(f"{folder}/event", json.dumps(event.to_message(result.frame), ensure_ascii=False), qos=1)
        self._publish(f"{folder}/frame", line_of(result), qos=0)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            if self._client.is_connected():
                self._publish("status", "offline", qos=1, retain=True, limit_s=GOODBYE_S)
            self._client.disconnect()
        with contextlib.suppress(Exception):
            self._client.loop_stop()
        self._client.on_connect = self._client.on_disconnect = None  # or its sockets stay until the next collection

    def _publish(self, topic: str, text: str, *, qos: int, retain: bool = False, limit_s: float = SEND_S) -> None:
        if not self._client.is_connected():
            raise SinkError("the broker closed the connection")
        info = self._client.publish(f"{self._topic}/{topic}", text.encode(), qos=qos, retain=retain)
        try:
            info.wait_for_publish(limit_s)
        except (ValueError, RuntimeError) as error:
            raise SinkError(str(error)) from error
        if not info.is_published():
            raise SinkError(f"the broker took nothing for {limit_s:g} s")

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._refusal = str(reason) if reason.is_failure else ""
        self._answered.set()

    def _on_end(self, *_: Any) -> None:
        if not self._answered.is_set():
            self._refusal = "it closed the connection"
            self._answered.set()


@functools.cache
def _guarded(mqtt: Any) -> Any:
    """The library's client, whose thread ends without a traceback when a broker talks nonsense; `send` sees the end."""

    class Client(mqtt.Client):  # type: ignore[misc]
        def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> Any:
            try:
                return super().loop_forever(timeout, retry_first_connection)
            except Exception as error:
                log.debug("the broker's words cannot be read: %s", type(error).__name__)
                self._sock_close()
                self._do_on_disconnect(packet_from_broker=False, v1_rc=mqtt.MQTTErrorCode.MQTT_ERR_PROTOCOL)
                return mqtt.MQTTErrorCode.MQTT_ERR_PROTOCOL

    return Client


def require_paho() -> Any:
    """``paho.mqtt.client``.

    Raises:
        SettingsError: the library is not installed.
    """
    try:
        import paho.mqtt.client as mqtt
    except ImportError as error:
        raise SettingsError("--publish mqtt:// needs paho-mqtt: pip install 'pose2seg-live[publish]'") from error
    return mqtt
