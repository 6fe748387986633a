"""A paho MQTT client that lives on an asyncio loop, without a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion


class MqttClient:
    """One MQTT 3.1.1 client; all callbacks run on the loop that `connect` was called on.

    Args:
        client_id: The client's name.
        keepalive_seconds: The interval it promises to be heard in; 0 promises nothing.
        clean: Whether the broker is to forget it when it goes.
        will: Topic and payload that the broker publishes (QoS 1) when it goes without a word.

    Attributes:
        connected: Whether the broker has accepted it and the socket is up.
        frozen: Whether it neither reads nor pings.
        on_message: Called with topic and payload of each message received.
        on_lost: Called when an accepted connection is over, whichever end closed it.
    """

    def __init__(
        self,
        client_id: str,
        *,
        keepalive_seconds: int = 60,
        clean: bool = True,
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self.client_id = client_id
        self.connected = False
        self.frozen = False
        self.on_message: Callable[[str, bytes], None] = lambda _topic, _payload: None
        self.on_lost: Callable[[], None] = lambda: None
        self._keepalive_seconds = keepalive_seconds
        self._accepted: asyncio.Future[None] | None = None
        self._answer: asyncio.Future[None] | None = None
        self._misc: asyncio.TimerHandle | None = None
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id, clean_session=clean, reconnect_on_failure=False
        )
        if will:
            client.will_set(*will, qos=1)
        client.on_socket_open = self._socket_open
        client.on_socket_close = self._socket_close
        client.on_socket_register_write = self._register_write
        client.on_socket_unregister_write = self._unregister_write
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._answered
        client.on_message = lambda _c, _u, message: self.on_message(message.topic, bytes(message.payload))

    async def connect(self, port: int, *, timeout_seconds: float = 10.0) -> None:
        """Connect to a broker on loopback and wait for its acceptance.

        Raises:
            OSError: Nothing listens, the connection was refused or lost, or no answer came in time.
        """
        self._loop = asyncio.get_running_loop()
        accepted = self._accepted = self._loop.create_future()

        def give_up() -> None:
            if not accepted.done():
                accepted.set_exception(ConnectionError(f"the broker on port {port} does not answer"))

        late = self._loop.call_later(timeout_seconds, give_up)
        try:
            # Opening a socket to loopback returns at once: the kernel answers, not the broker.
            self._client.connect("127.0.0.1", port, keepalive=self._keepalive_seconds)
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with the answer.
            await accepted
        finally:
            late.cancel()
            self._accepted = None
            if not self.connected:
                self.drop()

    async def subscribe(self, *topic_filters: str) -> None:
        """Subscribe at QoS 1 and wait for the broker's answer, or for the end of the connection."""
        if topic_filters and self.connected:
            self._answer = self._loop.create_future()
            self._client.subscribe([(topic_filter, 1) for topic_filter in topic_filters])
            await self._answer

    def unsubscribe(self, *topic_filters: str) -> None:
        """End subscriptions; nothing happens when not connected."""
        if topic_filters:
            self._client.unsubscribe(list(topic_filters))

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Publish; without a connection, or frozen, the message is lost."""
        if self.connected and not self.frozen:
            self._client.publish(topic, payload, qos, retain)

    def disconnect(self) -> None:
        """Take leave with a DISCONNECT packet and close."""
        self._client.disconnect()
        self._client.loop_write()
        self.drop()

    def freeze(self) -> None:
        """Stop reading, and send no pings, as without power."""
        self.frozen = True
        if (sock := self._client.socket()) is not None:
            self._loop.remove_reader(sock)

    def drop(self) -> None:
        """Close the socket without a word."""
        self.frozen = False
        with contextlib.suppress(OSError):
            sock: Any = self._client.socket()
            if sock is not None:
                sock.shutdown(socket.SHUT_RDWR)
        while self._client.socket() is not None:
            self._client.loop_read()  # paho closes when it reads the end

    def _socket_open(self, _client: paho.Client, _userdata: Any, sock: Any) -> None:
        self._loop.add_reader(sock, self._client.loop_read)
        self._schedule_misc()

    def _socket_close(self, _client: paho.Client, _userdata: Any, sock: Any) -> None:
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
        if self._misc is not None:
            self._misc.cancel()

    def _register_write(self, _client: paho.Client, _userdata: Any, sock: Any) -> None:
        self._loop.add_writer(sock, self._client.loop_write)

    def _unregister_write(self, _client: paho.Client, _userdata: Any, sock: Any) -> None:
        self._loop.remove_writer(sock)

    def _schedule_misc(self) -> None:
        if self._keepalive_seconds:
            self._misc = self._loop.call_later(self._keepalive_seconds / 4, self._keep_alive)

    def _keep_alive(self) -> None:
        self._schedule_misc()
        if not self.frozen:
            self._client.loop_misc()

    def _on_connect(self, _client: paho.Client, _userdata: Any, _flags: Any, reason: Any, _p: Any) -> None:
        if self._accepted is None or self._accepted.done():
            return
        if reason.is_failure:
            self._accepted.set_exception(ConnectionRefusedError(f"the broker refused: {reason}"))
        else:
            self.connected = True
            self._accepted.set_result(None)

    def _on_disconnect(self, *_arguments: object) -> None:
        if self._accepted is not None and not self._accepted.done():
            self._accepted.set_exception(ConnectionResetError("the broker closed the connection"))
        elif self.connected:
            self.connected = False
            self._answered()
            self.on_lost()

    def _answered(self, *_arguments: object) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)
