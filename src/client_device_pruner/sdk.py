"""What is used of the SDK: its client for Greengrass IPC, and not the package around that."""

# ruff: noqa: E402 - the package has to be there before its modules are imported

from __future__ import annotations

import importlib.util
import sys

_package = importlib.util.find_spec("awsiot")
if _package is not None:
    # Run, the package itself would import three MQTT clients (0.7 MiB), of which its IPC client uses nothing.
    sys.modules.setdefault("awsiot", importlib.util.module_from_spec(_package))

from awsiot.eventstreamrpc import LifecycleHandler
from awsiot.greengrasscoreipc import connect, model
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2

__all__ = ["GreengrassCoreIPCClientV2", "LifecycleHandler", "connect", "model"]
