"""The server's thread: addresses, a stuck engine, and an orderly end."""

import socket
import threading
import time

import httpx
import pytest
import structlog

from cdc.api import address
from cdc.api.server import HttpServer
from cdc.errors import ConfigError
from cdc.telemetry.metrics import Metrics

SEARCH = {"pipeline": "p", "query": "q"}


def test_a_taken_address_is_told_in_a_sentence(engine, client):
    taken = f"127.0.0.1:{client.base_url.port}"
    with pytest.raises(ConfigError, match=f"WALVEC_HTTP is '{taken}', but another process listens there. Set"):
        HttpServer(taken, view=engine, metrics=Metrics()).start()


@pytest.mark.parametrize("bind", ["", "9464", ":9464", "localhost", "localhost:", "h:x", "h:-1", "h:65536", "h:٣"])
def test_malformed_addresses(engine, bind):
    with pytest.raises(ConfigError, match=r"WALVEC_HTTP.*Write it as 127\.0\.0\.1:9464"):
        HttpServer(bind, view=engine, metrics=Metrics())


@pytest.mark.parametrize("bind", ["no-such-host.invalid:0", "192.0.2.1:9464"])
def test_addresses_of_others(bind):
    with pytest.raises(ConfigError, match="address of this machine"):
        address.listen(bind)


def test_ipv6(engine):
    if not socket.has_ipv6:
        pytest.fail("this Python has no IPv6")
    server = HttpServer("[::1]:0", view=engine, metrics=Metrics())
    bound = server.start()
    try:
        assert bound.startswith("[::1]:")
        assert httpx.get(f"http://{bound}/livez", trust_env=False).status_code == 200
    finally:
        server.stop()


def test_a_token_must_fit_a_header(engine):
    with pytest.raises(ConfigError, match="WALVEC_HTTP_TOKEN") as refused:
        HttpServer("127.0.0.1:0", "geheim\n", view=engine, metrics=Metrics())
    assert "geheim" not in str(refused.value)


def test_an_open_port_without_a_token_is_told(engine):
    for token, told in ((None, True), ("token", False)):
        with structlog.testing.capture_logs() as logs:
            server = HttpServer("0.0.0.0:0", token, view=engine, metrics=Metrics())
            server.start()
            server.stop()
        assert ("http_unprotected" in {event["event"] for event in logs}) is told


def test_it_answers_while_the_engine_is_stuck(serve, engine):
    client = serve(search_timeout_s=0.2)
    engine.released.clear()
    engine.heartbeat_age = 60.0
    reply = client.post("/v1/search", json=SEARCH)
    assert reply.status_code == 504
    assert "within 0.2 s" in reply.json()["error"]
    assert client.get("/livez").status_code == 503
    assert client.get("/metrics").status_code == 200
    assert client.get("/status").status_code == 200
    assert client.get("/").status_code == 200
    # Threads that hang are bounded: what goes beyond is refused at once, and all are of use again afterwards.
    codes = [client.post("/v1/search", json=SEARCH).status_code for _ in range(16)]
    assert codes == [504] * 15 + [503]
    engine.released.set()
    deadline = time.monotonic() + 10
    while client.post("/v1/search", json=SEARCH).status_code != 200:
        assert time.monotonic() < deadline


def test_slow_searches_do_not_hold_up_others(serve, engine):
    client = serve()
    engine.released.clear()
    replies = []

    def ask():
        replies.append(httpx.post(f"{client.base_url}/v1/search", json=SEARCH, trust_env=False))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(engine.asked) < 4:
        assert client.get("/readyz").status_code == 200
    engine.released.set()
    for thread in threads:
        thread.join()
    assert [reply.status_code for reply in replies] == [200] * 4


def test_stopping_ends_the_thread_also_with_a_request_under_way(engine):
    before = set(threading.enumerate())
    server = HttpServer("127.0.0.1:0", view=engine, metrics=Metrics())
    bound = server.start()
    engine.released.clear()
    replies = []
    asking = threading.Thread(
        target=lambda: replies.append(httpx.post(f"http://{bound}/v1/search", json=SEARCH, trust_env=False))
    )
    asking.start()
    while not engine.asked:
        time.sleep(0.01)
    began = time.monotonic()
    server.stop()
    server.stop()
    assert time.monotonic() - began < 4
    assert "walvec-http" not in {t.name for t in set(threading.enumerate()) - before}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{bound}/livez", trust_env=False)
    asking.join()
    assert [(r.status_code, r.json()) for r in replies] == [(503, {"error": "The server is stopping."})]


def test_the_same_port_can_be_taken_again(engine):
    server = HttpServer("127.0.0.1:0", view=engine, metrics=Metrics())
    bound = server.start()
    httpx.get(f"http://{bound}/livez", trust_env=False)
    server.stop()
    again = HttpServer(bound, view=engine, metrics=Metrics())
    assert again.start() == bound
    again.stop()
