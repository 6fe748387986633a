"""The edge to Greengrass: one connection, asynchronous calls, and callbacks that only put into the queue."""

from __future__ import annotations

import contextlib
import gc
import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from awsiot.eventstreamrpc import LifecycleHandler
from awsiot.greengrasscoreipc import connect, model
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2

CONNECT_SECONDS = 10.0
"""How long connecting may take; the SDK's own default."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the subscription; `at` is when it was received, in monotonic seconds."""

    topic: str
    payload: bytes
    at: float


@dataclass(frozen=True, slots=True)
class Configuration:
    """A component's configuration (`component` None: our own); `error` says why it could not be read."""

    component: str | None
    value: Any
    error: str


@dataclass(frozen=True, slots=True)
class ConfigurationChanged:
    """A deployment changed the configuration of a component that we follow."""

    component: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A call failed: which, on what, and why; `unauthorized` if a permission is missing."""

    operation: str
    resource: str
    error: str
    unauthorized: bool


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A subscription stands."""

    topic: str


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """A subscription ended without our doing."""

    topic: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is lost; the token of this process may no longer be good."""

    reason: str


@dataclass(frozen=True, slots=True)
class PreUpdate:
    """A deployment waits for our answer before it goes on."""

    deployment_id: str


News = Message | Configuration | ConfigurationChanged | Refused | Subscribed | StreamClosed | Disconnected | PreUpdate


class Ipc(Protocol):
    """What the component asks of Greengrass; every answer arrives as news."""

    def subscribe(self, topic: str) -> None:
        """Subscribe to a filter on local pub/sub, our own messages included."""

    def unsubscribe(self) -> None:
        """Close all subscriptions, whatever state they are in."""

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish a binary message on local pub/sub: one of JSON can end subscriptions on Lite (case 27)."""

    def publish_to_iot_core(self, topic: str, payload: bytes) -> None:
        """Publish to AWS IoT Core, QoS 1."""

    def read_configuration(self, component: str | None) -> None:
        """Ask for a component's configuration, None for our own."""

    def follow_configuration(self, component: str | None) -> None:
        """Be told when a component's configuration changes."""

    def follow_deployments(self) -> None:
        """Be asked before a deployment updates components."""

    def defer(self, deployment_id: str, milliseconds: int) -> None:
        """Let the deployment go on (0) or ask again after so long."""

    def close(self) -> None:
        """End the connection; nothing is delivered afterwards."""


class GreengrassIpc:
    """The connection, through the unmodified SDK.

    Args:
        deliver: takes messages of the subscription, which may be dropped; called on the network's thread.
        report: takes all other news; called on the network's thread, or on the caller's.

    Raises:
        Exception: whatever the SDK raises when it cannot connect.
    """

    def __init__(self, deliver: Callable[[Message], None], report: Callable[[News], None]) -> None:
        self._deliver = deliver
        self._report = report
        self._closed = False
        self._subscriptions: list[Any] = []
        # The SDK's objects refer to one another: a lost connection keeps a thread until the collector finds it.
        gc.collect()
        connection = connect(lifecycle_handler=_Lifecycle(self), timeout=CONNECT_SECONDS)
        # Without an executor the callbacks run in the one thread of the network: in order, and at half the cost. They
        # only put into the queue, so that they neither block it nor wait for a call.
        self._client = GreengrassCoreIPCClientV2(client=connection, executor=None)

    def subscribe(self, topic: str) -> None:
        """See `Ipc`."""
        deliver = self._deliver

        def on_event(event: Any) -> None:
            at = time.monotonic()
            binary = event.binary_message
            if binary is not None:
                deliver(Message(binary.context.topic, binary.message or b"", at))
            elif event.json_message is not None:
                text = json.dumps(event.json_message.message)
                deliver(Message(event.json_message.context.topic, text.encode(), at))

        operation: Any = None

        def on_closed() -> None:
            # One that we closed ourselves is no news.
            if operation in self._subscriptions:
                self.report(StreamClosed(topic))

        def call() -> Future[Any]:
            nonlocal operation
            future, operation = self._client.subscribe_to_topic_async(
                topic=topic,
                receive_mode=model.ReceiveMode.RECEIVE_ALL_MESSAGES,
                on_stream_event=on_event,
                on_stream_error=self._keep_open,
                on_stream_closed=on_closed,
            )
            self._subscriptions.append(operation)
            started: Future[Any] = future
            return started

        self._start("SubscribeToTopic", topic, call, lambda _answer: self.report(Subscribed(topic)))

    def unsubscribe(self) -> None:
        """See `Ipc`."""
        ended, self._subscriptions = self._subscriptions, []
        for operation in ended:
            with contextlib.suppress(Exception):
                operation.close()

    def publish(self, topic: str, payload: bytes) -> None:
        """See `Ipc`."""
        message = model.PublishMessage(binary_message=model.BinaryMessage(message=payload))
        self._start(
            "PublishToTopic",
            topic,
            lambda: self._client.publish_to_topic_async(topic=topic, publish_message=message),
        )

    def publish_to_iot_core(self, topic: str, payload: bytes) -> None:
        """See `Ipc`."""
        self._start(
            "PublishToIoTCore",
            topic,
            lambda: self._client.publish_to_iot_core_async(
                topic_name=topic, qos=model.QOS.AT_LEAST_ONCE, payload=payload
            ),
        )

    def read_configuration(self, component: str | None) -> None:
        """See `Ipc`."""
        self._start(
            "GetConfiguration",
            component or "",
            lambda: self._client.get_configuration_async(component_name=component, key_path=[]),
            lambda answer: self.report(Configuration(component, answer.value, "")),
            lambda error: self.report(Configuration(component, None, _explain(error))),
        )

    def follow_configuration(self, component: str | None) -> None:
        """See `Ipc`."""
        self._start(
            "SubscribeToConfigurationUpdate",
            component or "",
            lambda: self._client.subscribe_to_configuration_update_async(
                component_name=component,
                key_path=[],
                on_stream_event=lambda _event: self.report(ConfigurationChanged(component)),
                on_stream_error=self._keep_open,
            )[0],
        )

    def follow_deployments(self) -> None:
        """See `Ipc`."""

        def on_event(event: Any) -> None:
            if event.pre_update_event is not None:
                self.report(PreUpdate(event.pre_update_event.deployment_id or ""))

        self._start(
            "SubscribeToComponentUpdates",
            "",
            lambda: self._client.subscribe_to_component_updates_async(
                on_stream_event=on_event, on_stream_error=self._keep_open
            )[0],
        )

    def defer(self, deployment_id: str, milliseconds: int) -> None:
        """See `Ipc`."""
        self._start(
            "DeferComponentUpdate",
            deployment_id,
            lambda: self._client.defer_component_update_async(
                deployment_id=deployment_id, recheck_after_ms=milliseconds
            ),
        )

    def close(self) -> None:
        """See `Ipc`."""
        self._closed = True
        with contextlib.suppress(Exception):
            self._client.close().result(1.0)

    def report(self, news: News) -> None:
        """Pass news on, unless the connection is being closed by ourselves."""
        if not self._closed:
            self._report(news)

    def _start(
        self,
        operation: str,
        resource: str,
        call: Callable[[], Future[Any]],
        done: Callable[[Any], None] | None = None,
        failed: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Begin a call; whatever goes wrong, now or later, becomes news."""

        def refused(error: BaseException) -> None:
            unauthorized = isinstance(error, model.UnauthorizedError)
            self.report(Refused(operation, resource, _explain(error), unauthorized))

        def finished(future: Future[Any]) -> None:
            error = future.exception()
            if error is not None:
                (failed or refused)(error)
            elif done is not None:
                done(future.result())

        try:
            future = call()
        except Exception as error:  # noqa: BLE001 - a closed connection raises what it likes
            (failed or refused)(error)
        else:
            future.add_done_callback(finished)

    @staticmethod
    def _keep_open(_error: Exception) -> bool:
        # A payload that the SDK cannot parse must not end the watch.
        return False


class _Lifecycle(LifecycleHandler):
    def __init__(self, ipc: GreengrassIpc) -> None:
        self._ipc = ipc

    def on_disconnect(self, reason: Exception | None) -> None:
        self._ipc.report(Disconnected(_explain(reason) if reason else "closed by the nucleus"))

    def on_error(self, _error: Exception) -> bool:
        return True


def _explain(error: BaseException) -> str:
    """An error in words; Greengrass Lite's carry no text, so their name must do."""
    text = str(getattr(error, "message", None) or error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
