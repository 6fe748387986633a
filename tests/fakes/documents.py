"""Documents of keys and values, taken apart and made by the paths of their keys; and those that an API of AWS takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from botocore.session import get_session
from botocore.validate import validate_parameters


def leaves(document: dict[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """The path of each key that holds no further keys, with its value."""
    for key, value in document.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{start}{key}.")
        else:
            yield start + key, value


def nested(path: str, value: Any) -> dict[str, Any]:
    """A document with one value at a dotted path."""
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def check_input(service: str, operation: str, document: dict[str, Any]) -> None:
    """Check a call's input against the model of the API; unknown and missing keys are refused."""
    model = get_session().get_service_model(service).operation_model(operation)
    validate_parameters(document, model.input_shape)
