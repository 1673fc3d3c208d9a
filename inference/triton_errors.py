"""From a gRPC status of Triton to what can be done about it.

The table was measured on Triton 2.51. Its surprises: a missing credential and a TLS mismatch come as UNAVAILABLE like
an outage; a python model whose process died answers INTERNAL for ever while the server calls itself ready; a full
queue is UNAVAILABLE; and a message may quote the text that the model choked on, which must go no further.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from grpc import StatusCode

from inference.errors import (
    EmbedError,
    ModelFailed,
    ModelMisconfigured,
    ModelOverloaded,
    ModelSilent,
    ModelUnavailable,
    RequestTooLarge,
    TextRefused,
)
from inference.quoting import quotable

_QUEUE_FULL = ("exceeds maximum queue size", "request timeout expired")
_RESTRICTED = "this protocol is restricted"
_CERTIFICATE = "certificate_verify_failed"
_NOT_TLS = ("tls handshake failed", "ssl handshake failed")
_NOT_HTTP2 = "failed parsing http/2"
_NOT_HTTP = "failed parsing http/1.1"
_WANTS_CERTIFICATE = ("certificate_required", "certificate required", "handshake_failure", "bad_certificate")
_NO_MODEL = re.compile(r"(\[request id: [^\]]*\] )?request for unknown model")
_TOO_LARGE = ("larger than max", "message size", "exceeds maximum message")
_TOO_MANY_ROWS = ("batch-size must be <=", "batch size must be <=", "exceeds maximum batch")
# Whole, so that a text quoted in a model's own message cannot pass for it.
_DEAD_STUB = re.compile(r"stub process '[^']{1,200}' is not healthy\.?$")

_BY_CODE: dict[StatusCode, tuple[type[EmbedError], str, str]] = {
    StatusCode.DEADLINE_EXCEEDED: (ModelSilent, "timeout", "did not answer in time"),
    StatusCode.CANCELLED: (ModelUnavailable, "cancelled", "cancelled the request"),
    StatusCode.ABORTED: (ModelUnavailable, "aborted", "aborted the request"),
    StatusCode.NOT_FOUND: (ModelUnavailable, "not_found", "does not have the model loaded; load it there"),
    StatusCode.INVALID_ARGUMENT: (TextRefused, "invalid_argument", "refuses an input"),
    StatusCode.UNAUTHENTICATED: (
        ModelMisconfigured,
        "unauthenticated",
        "refuses the credentials; check WALVEC_TRITON_TOKEN",
    ),
    StatusCode.PERMISSION_DENIED: (ModelMisconfigured, "permission_denied", "denies access; see WALVEC_TRITON_HEADERS"),
    StatusCode.UNIMPLEMENTED: (ModelMisconfigured, "unimplemented", "cannot serve this kind of request or model"),
    StatusCode.INTERNAL: (ModelFailed, "internal", "failed on the request"),
}


def translate(
    code: StatusCode, details: str, *, url: str, model: str, proven: bool = False, texts: Sequence[str] = (),
    secrets: Sequence[str] = (), retry_after_s: float | None = None,
) -> EmbedError:  # fmt: skip
    """Return the error to raise for a failed call.

    Args:
        code: gRPC status.
        details: the server's or the transport's words.
        url: the server, without credentials, for the message.
        model: the model asked for.
        proven: whether this server has answered before; then a broken handshake is an outage, not a wrong URL.
        texts: what was sent, so that the message can be kept from quoting it.
        secrets: what must not be quoted either.
        retry_after_s: how long the server asked to be left alone, in seconds, if it did.
    """
    who = f"Triton at {url}, model {model},"
    words, quote = details.lower(), quotable(details, texts, secrets)
    if code not in (StatusCode.INTERNAL, StatusCode.UNKNOWN) and _NO_MODEL.match(words):
        code = StatusCode.NOT_FOUND  # older servers say 400 over HTTP
    if code is StatusCode.UNAVAILABLE:
        error = _unavailable(words, who, url, proven, quote)
        error.retry_after_s = retry_after_s
        return error
    if code is StatusCode.RESOURCE_EXHAUSTED:
        if any(mark in words for mark in _TOO_LARGE):
            return RequestTooLarge(f"{who} and this request are too large for each other.", reason="too_large")
        return ModelOverloaded(
            f"{who} has no capacity left ({quote}).", reason="overloaded", retry_after_s=retry_after_s
        )
    if code is StatusCode.INVALID_ARGUMENT and any(mark in words for mark in _TOO_MANY_ROWS):
        return RequestTooLarge(f"{who} takes fewer rows at once than were sent.", reason="too_many_rows")
    if code is StatusCode.INTERNAL and _DEAD_STUB.search(words):
        return ModelUnavailable(
            f"{who} has lost its process: unload the model and load it again (or restart the server).",
            reason="model_process_died",
        )
    unknown = (ModelFailed, str(code.name).lower(), "failed on the request")
    kind, reason, what = _BY_CODE.get(code, unknown)
    return kind(f"{who} {what} ({quote}).", reason=reason)


def _unavailable(words: str, who: str, url: str, proven: bool, quote: str) -> EmbedError:
    if any(mark in words for mark in _QUEUE_FULL):
        return ModelOverloaded(f"{who} has a full queue.", reason="queue_full")
    if _RESTRICTED in words:
        return ModelMisconfigured(
            f"{who} lets only restricted clients in ({quote}): give the header it asks for in WALVEC_TRITON_HEADERS.",
            reason="restricted",
        )
    if _CERTIFICATE in words:
        return ModelMisconfigured(
            f"{who} shows a certificate that is not trusted here, or not for this name: "
            "set WALVEC_TRITON_CA_FILE to the file of its authority.",
            reason="certificate",
        )
    if any(mark in words for mark in _WANTS_CERTIFICATE):
        return ModelMisconfigured(
            f"{who} wants a client certificate that it trusts: set WALVEC_TRITON_CERT_FILE and WALVEC_TRITON_KEY_FILE.",
            reason="client_certificate",
        )
    if not proven and any(mark in words for mark in _NOT_TLS):
        plain = url.replace("s://", "://", 1)
        return ModelMisconfigured(f"{who} does not speak TLS on that port: try {plain}.", reason="not_tls")
    if not proven and _NOT_HTTP2 in words:
        return ModelMisconfigured(
            f"{who} does not speak gRPC on that port: give Triton's gRPC port, 8001 unless it was changed.",
            reason="not_grpc",
        )
    if not proven and _NOT_HTTP in words:
        return ModelMisconfigured(
            f"{who} does not speak HTTP on that port: give Triton's HTTP port, 8000 unless it was changed.",
            reason="not_http",
        )
    return ModelUnavailable(f"{who} cannot be reached ({quote}).", reason="unavailable")
