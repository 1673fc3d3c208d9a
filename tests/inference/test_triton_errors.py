import pytest
from grpc import StatusCode as S

from inference import errors as e
from inference.quoting import quotable
from inference.triton_errors import translate

CONNECT = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:8001: "

TABLE = [
    # status, what was seen on Triton 2.51 and gRPC 1.85, kind, reason
    (
        S.UNAVAILABLE,
        CONNECT + "Failed to connect to remote host: Connection refused",
        e.ModelUnavailable,
        "unavailable",
    ),
    (S.UNAVAILABLE, "Stream removed (Socket closed)", e.ModelUnavailable, "unavailable"),
    (S.UNAVAILABLE, "errors resolving nosuch:8001: [Domain name not found]", e.ModelUnavailable, "unavailable"),
    (S.UNAVAILABLE, "Request for unknown model: 'm' has no available versions", e.ModelUnavailable, "not_found"),
    (
        S.INVALID_ARGUMENT,
        "[request id: x] Request for unknown model: 'm' is not found",
        e.ModelUnavailable,
        "not_found",
    ),
    (S.UNAVAILABLE, "[request id: x] Exceeds maximum queue size", e.ModelOverloaded, "queue_full"),
    (S.UNAVAILABLE, "Request timeout expired", e.ModelOverloaded, "queue_full"),
    (S.UNAVAILABLE, "This protocol is restricted, expecting header 'k'", e.ModelMisconfigured, "restricted"),
    (S.UNAVAILABLE, CONNECT + "Tls handshake failed: WRONG_VERSION_NUMBER", e.ModelMisconfigured, "not_tls"),
    (S.UNAVAILABLE, CONNECT + "Tls handshake failed: CERTIFICATE_VERIFY_FAILED", e.ModelMisconfigured, "certificate"),
    (
        S.UNAVAILABLE,
        CONNECT + "Tls handshake failed: TLSV13_ALERT_CERTIFICATE_REQUIRED",
        e.ModelMisconfigured,
        "client_certificate",
    ),
    (S.UNAVAILABLE, CONNECT + "Failed parsing HTTP/2 (Expected SETTINGS)", e.ModelMisconfigured, "not_grpc"),
    (S.UNAVAILABLE, "Failed parsing HTTP/1.1", e.ModelMisconfigured, "not_http"),
    (S.NOT_FOUND, "Request for unknown model: 'm' is not found", e.ModelUnavailable, "not_found"),
    (S.DEADLINE_EXCEEDED, "Deadline Exceeded", e.ModelSilent, "timeout"),
    (S.CANCELLED, "", e.ModelUnavailable, "cancelled"),
    (S.INVALID_ARGUMENT, "unexpected shape for input 'TEXT'", e.TextRefused, "invalid_argument"),
    (S.INVALID_ARGUMENT, "inference request batch-size must be <= 4 for 'm'", e.RequestTooLarge, "too_many_rows"),
    (S.INTERNAL, "Failed to process the request(s) for model instance 'm_0'", e.ModelFailed, "internal"),
    (
        S.INTERNAL,
        "Failed to process the request(s) for model instance 'm_0', message: Stub process 'm_0' is not healthy.",
        e.ModelUnavailable,
        "model_process_died",
    ),
    (S.INTERNAL, "message: ValueError: stub process is not healthy, says the row", e.ModelFailed, "internal"),
    (S.INVALID_ARGUMENT, "bad row: request for unknown model", e.TextRefused, "invalid_argument"),
    (S.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (9 vs. 4)", e.RequestTooLarge, "too_large"),
    (S.RESOURCE_EXHAUSTED, "rate limited", e.ModelOverloaded, "overloaded"),
    (S.UNAUTHENTICATED, "", e.ModelMisconfigured, "unauthenticated"),
    (S.PERMISSION_DENIED, "", e.ModelMisconfigured, "permission_denied"),
    (S.UNIMPLEMENTED, "", e.ModelMisconfigured, "unimplemented"),
    (S.UNKNOWN, "", e.ModelFailed, "unknown"),
    (S.DATA_LOSS, "", e.ModelFailed, "data_loss"),
]


@pytest.mark.parametrize(("code", "details", "kind", "reason"), TABLE)
def test_each_status_has_one_remedy(code, details, kind, reason):
    error = translate(code, details, url="grpcs://t:8001", model="m")
    assert type(error) is kind and error.reason == reason
    assert str(error).startswith("Triton at grpcs://t:8001, model m, ") and str(error).endswith(".")


@pytest.mark.parametrize("details", [CONNECT + "Tls handshake failed: EOF", CONNECT + "Failed parsing HTTP/2 (x)"])
def test_a_server_that_worked_before_is_down_and_not_wrong(details):
    error = translate(S.UNAVAILABLE, details, url="grpcs://t:8001", model="m", proven=True)
    assert type(error) is e.ModelUnavailable


@pytest.mark.parametrize(
    ("details", "text"),
    [
        ("could not convert 'the patient was seen on Monday'", "Note: the patient was seen on Monday by Dr. X"),
        ("bad value: 4111 1111", "4111 1111"),
        ("text: " + "abcdefghijklmnop", "abcdefghijklmnop"),
    ],
)
def test_a_message_that_quotes_a_text_is_withheld(details, text):
    for code in S:
        shown = str(translate(code, details, url="grpc://t:1", model="m", texts=["other", text]))
        assert text[:8] not in shown and "patient was" not in shown


def test_a_message_is_withheld_when_searching_it_would_take_long():
    assert "withheld" in quotable("harmless", ["x" * 2_000_000])


def test_an_innocent_message_is_shown_on_one_line():
    assert quotable("no space left on device.\n  traceback…", ["some text"]) == "no space left on device"
    assert quotable("") == "no reason given"
    assert len(quotable("y" * 5000)) == 200


def test_a_server_that_asks_for_a_pause_is_heard():
    for code in (S.UNAVAILABLE, S.RESOURCE_EXHAUSTED):
        assert translate(code, "busy", url="http://t:1", model="m", retry_after_s=7).retry_after_s == 7


def test_a_secret_is_never_quoted():
    error = translate(
        S.UNAUTHENTICATED, "no user for Bearer hush", url="http://t:1", model="m", secrets=["Bearer hush"]
    )
    assert "hush" not in str(error)
