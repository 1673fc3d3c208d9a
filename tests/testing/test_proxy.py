from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from cdc.testing.cluster import Cluster
from cdc.testing.proxy import FaultProxy

QUIET_S = 0.2  # how long silence is listened to


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    """A proxy before a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo(peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(65536):
                    peer.sendall(data)
            except OSError:
                pass  # reset, as asked

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with FaultProxy(*listener.getsockname()) as proxy:
        yield proxy
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(timeout=5)


def client(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def receive(sock: socket.socket, count: int) -> bytes:
    got = bytearray()
    while len(got) < count and (data := sock.recv(count - len(got))):
        got += data
    return bytes(got)


def is_silent(sock: socket.socket) -> bool:
    sock.settimeout(QUIET_S)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(10)
    return False


def test_bytes_and_ends_pass_both_ways(proxy: FaultProxy) -> None:
    payload = bytes(range(256)) * 4000
    with client(proxy) as sock:

        def send() -> None:
            sock.sendall(payload)
            sock.shutdown(socket.SHUT_WR)

        threading.Thread(target=send).start()
        assert receive(sock, len(payload)) == payload
        assert sock.recv(1) == b""
    assert proxy.connections == 1


def test_one_byte_slices_arrive_whole(proxy: FaultProxy) -> None:
    proxy.shape(slice_bytes=1)
    with client(proxy) as sock:
        sock.sendall(b"cut everywhere")
        assert receive(sock, 14) == b"cut everywhere"


def test_latency_delays_and_does_not_limit_throughput(proxy: FaultProxy) -> None:
    proxy.shape(latency_s=0.1)
    with client(proxy) as sock:
        started = time.monotonic()
        for _ in range(20):  # all under way together: a chain of delays would take 4 s
            sock.sendall(b"x" * 100)
            time.sleep(0.002)
        receive(sock, 2000)
        assert 0.2 <= time.monotonic() - started < 2


def test_bandwidth_is_limited(proxy: FaultProxy) -> None:
    proxy.shape(bytes_per_s=100_000, slice_bytes=1000)
    with client(proxy) as sock:
        started = time.monotonic()
        sock.sendall(b"x" * 40_000)
        receive(sock, 40_000)
        assert time.monotonic() - started >= 0.4


def test_stall_is_a_black_hole_until_healed(proxy: FaultProxy) -> None:
    with client(proxy) as old:
        old.sendall(b"a")
        assert receive(old, 1) == b"a"
        proxy.stall()
        with client(proxy) as new:
            old.sendall(b"b")
            new.sendall(b"c")
            assert is_silent(old) and is_silent(new)
            proxy.heal()
            assert (receive(old, 1), receive(new, 1)) == (b"b", b"c")


def test_reset_reaches_open_connections_only(proxy: FaultProxy) -> None:
    with client(proxy) as old:
        old.sendall(b"a")
        receive(old, 1)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            old.recv(1)
    with client(proxy) as new:
        new.sendall(b"b")
        assert receive(new, 1) == b"b"


def test_reset_after_cuts_inside_a_message(proxy: FaultProxy) -> None:
    proxy.reset_after(5)
    with client(proxy) as sock:
        sock.sendall(b"0123456789")
        got = b""
        with pytest.raises(ConnectionResetError):
            while data := sock.recv(100):
                got += data
        assert b"01234".startswith(got)  # RST may overtake what the socket had not read yet, but nothing follows


def test_refuse_and_accept_keep_the_port(proxy: FaultProxy) -> None:
    port = proxy.port
    with client(proxy) as old:
        old.sendall(b"a")
        assert receive(old, 1) == b"a"  # only now it is surely accepted
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            client(proxy)
        old.sendall(b"a")
        assert receive(old, 1) == b"a"
    proxy.accept()
    assert proxy.port == port
    client(proxy).close()


def test_postgresql_behind_it(pg18: Cluster) -> None:
    with FaultProxy("127.0.0.1", pg18.port) as proxy:
        proxy.shape(slice_bytes=3)
        with psycopg.connect(pg18.dsn(port=proxy.port), autocommit=True) as connection:
            assert connection.execute("SELECT repeat('ä', 1000)").fetchone() == ("ä" * 1000,)
            proxy.reset()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
