"""Checks AWS Signature Version 4 as the services do: over method, path, query, signed headers and body."""

import hashlib
import hmac
import re
from dataclasses import dataclass
from urllib.parse import quote

from local_core.http_server import Request

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/,]+)/(?P<scope>\d{8}/[^/,]+/[^/,]+/aws4_request),\s*"
    r"SignedHeaders=(?P<headers>[^,]+),\s*Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass(frozen=True, slots=True)
class Signature:
    """What the Authorization header of a signed request says."""

    access_key: str
    scope: str
    """`<date>/<region>/<service>/aws4_request`."""
    signed_headers: tuple[str, ...]
    signature: str

    def signs(self, request: Request, secret_key: str) -> bool:
        """Return whether this signature was made for the request with that secret."""
        return hmac.compare_digest(self.signature, self._expected(request, secret_key))

    def _expected(self, request: Request, secret_key: str) -> str:
        canonical = "\n".join(
            (
                request.method,
                # The path is escaped once more than it is on the wire; only S3 does without.
                quote(request.path, safe="/-_.~"),
                "&".join(sorted(request.query.split("&"))) if request.query else "",
                *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in self.signed_headers),
                "",
                ";".join(self.signed_headers),
                hashlib.sha256(request.body).hexdigest(),
            )
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = "\n".join(("AWS4-HMAC-SHA256", request.headers.get("x-amz-date", ""), self.scope, digest))
        key = b"AWS4" + secret_key.encode()
        for part in (*self.scope.split("/"), text):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return key.hex()


def signature_of(request: Request) -> Signature | None:
    """Return the signature that the request carries; None if it carries none that can be read."""
    found = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    if found is None:
        return None
    return Signature(found["key"], found["scope"], tuple(found["headers"].split(";")), found["signature"])
