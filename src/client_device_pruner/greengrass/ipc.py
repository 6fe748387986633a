"""The edge to Greengrass: one connection, asynchronous calls, and callbacks that only put into the queue."""
# ruff: noqa: D102 - `Ipc` tells what the methods of `GreengrassIpc` do

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

CONNECT_SECONDS = 10.0  # how long connecting may take; the SDK's own default


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
    """The subscription stands."""


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """The subscription ended without our doing."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is lost, or one could not be made (`refused`): the token of this process may no longer be good."""

    reason: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class PreUpdate:
    """A deployment waits for our answer before it goes on."""

    deployment_id: str


News = Message | Configuration | ConfigurationChanged | Refused | Subscribed | StreamClosed | Disconnected | PreUpdate


class Ipc(Protocol):
    """What the component asks of Greengrass; every answer arrives as news."""

    def subscribe(self, topic: str) -> None:
        """Subscribe to a filter on local pub/sub, our own messages included, in place of the last subscription."""

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
    """The connection, through the unmodified SDK; making one raises what the SDK raises when it cannot connect.

    `deliver` takes messages of the subscription, which may be dropped, on the network's thread; `report` takes all
    other news, on that thread or the caller's.
    """

    def __init__(self, deliver: Callable[[Message], object], report: Callable[[News], None]) -> None:
        self._deliver = deliver
        self._report = report
        self._closed = False
        self._stream: Any = None
        self._subscription = 0
        # The SDK's objects refer to one another: a lost connection keeps a thread until the collector finds it.
        gc.collect()
        connection = connect(lifecycle_handler=_Lifecycle(self), timeout=CONNECT_SECONDS)
        # Without an executor the callbacks run in the one thread of the network: in order, and at half the cost. They
        # only put into the queue, so that they neither block it nor wait for a call.
        self._client = GreengrassCoreIPCClientV2(client=connection, executor=None)

    def subscribe(self, topic: str) -> None:
        self._subscription += 1
        subscription = self._subscription
        if self._stream is not None:
            with contextlib.suppress(Exception):
                self._stream.close()

        def on_event(event: Any) -> None:
            at, binary = time.monotonic(), event.binary_message
            if binary is not None:
                self._deliver(Message(binary.context.topic, binary.message or b"", at))
            elif event.json_message is not None:
                text = json.dumps(event.json_message.message)
                self._deliver(Message(event.json_message.context.topic, text.encode(), at))

        def on_closed() -> None:
            # One that we closed ourselves is no news.
            if subscription == self._subscription:
                self.report(StreamClosed())

        self._stream = self._start(
            "SubscribeToTopic",
            topic,
            self._client.subscribe_to_topic_async,
            done=lambda _answer: self.report(Subscribed()),
            topic=topic,
            receive_mode=model.ReceiveMode.RECEIVE_ALL_MESSAGES,
            on_stream_event=on_event,
            on_stream_error=_keep_open,
            on_stream_closed=on_closed,
        )

    def publish(self, topic: str, payload: bytes) -> None:
        message = model.PublishMessage(binary_message=model.BinaryMessage(message=payload))
        call = self._client.publish_to_topic_async
        self._start("PublishToTopic", topic, call, topic=topic, publish_message=message)

    def publish_to_iot_core(self, topic: str, payload: bytes) -> None:
        qos, call = model.QOS.AT_LEAST_ONCE, self._client.publish_to_iot_core_async
        self._start("PublishToIoTCore", topic, call, topic_name=topic, qos=qos, payload=payload)

    def read_configuration(self, component: str | None) -> None:
        self._start(
            "GetConfiguration",
            component or "",
            self._client.get_configuration_async,
            done=lambda answer: self.report(Configuration(component, answer.value, "")),
            failed=lambda error: self.report(Configuration(component, None, _explain(error))),
            component_name=component,
            key_path=[],
        )

    def follow_configuration(self, component: str | None) -> None:
        self._start(
            "SubscribeToConfigurationUpdate",
            component or "",
            self._client.subscribe_to_configuration_update_async,
            component_name=component,
            key_path=[],
            on_stream_event=lambda _event: self.report(ConfigurationChanged(component)),
            on_stream_error=_keep_open,
        )

    def follow_deployments(self) -> None:
        def on_event(event: Any) -> None:
            if event.pre_update_event is not None:
                self.report(PreUpdate(event.pre_update_event.deployment_id or ""))

        call = self._client.subscribe_to_component_updates_async
        self._start("SubscribeToComponentUpdates", "", call, on_stream_event=on_event, on_stream_error=_keep_open)

    def defer(self, deployment_id: str, milliseconds: int) -> None:
        call = self._client.defer_component_update_async
        answer: dict[str, Any] = {"deployment_id": deployment_id, "recheck_after_ms": milliseconds}
        self._start("DeferComponentUpdate", deployment_id, call, **answer)

    def close(self) -> None:
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
        call: Callable[..., Any],
        *,
        done: Callable[[Any], None] = lambda _answer: None,
        failed: Callable[[BaseException], None] | None = None,
        **arguments: Any,
    ) -> Any:
        """Begin a call, and give its stream if it has one; each error, now or later, becomes news."""

        def refused(error: BaseException) -> None:
            unauthorized = isinstance(error, model.UnauthorizedError)
            self.report(Refused(operation, resource, _explain(error), unauthorized))

        def finished(future: Future[Any]) -> None:
            error = future.exception()
            if error is None:
                done(future.result())
            else:
                (failed or refused)(error)

        try:
            started = call(**arguments)
        except Exception as error:  # noqa: BLE001 - a closed connection raises what it likes
            (failed or refused)(error)
            return None
        future, stream = started if isinstance(started, tuple) else (started, None)
        future.add_done_callback(finished)
        return stream


class _Lifecycle(LifecycleHandler):
    def __init__(self, ipc: GreengrassIpc) -> None:
        self._ipc = ipc

    def on_disconnect(self, reason: Exception | None) -> None:
        self._ipc.report(Disconnected(_explain(reason) if reason else "closed by the nucleus"))

    def on_error(self, _error: Exception) -> bool:
        return True


def _keep_open(_error: Exception) -> bool:
    """A payload that the SDK cannot parse must not end the watch."""
    return False


def _explain(error: BaseException) -> str:
    """An error in words; Greengrass Lite's carry no text, so their name must do."""
    text = str(getattr(error, "message", None) or error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
