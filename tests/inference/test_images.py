"""Images that rows name, against a server that has every bad habit, and a file system that has some."""

import asyncio
import errno
import os
import struct
import time
import zlib
from collections import deque
from ipaddress import ip_address

import httpcore
import pytest

from inference.egress import Allowed, GuardedBackend, is_public
from inference.errors import EmbedError, ModelFailed, ModelMisconfigured, TextRefused
from inference.image_kinds import check_image
from inference.images import ImageReader, ImageRules
from inference.triton import CANARY_FILE as PNG

HERE = Allowed.parse("127.0.0.1")


def png(width, height):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


class Shelf:
    """A web server of scripted replies: ``replies[path]`` is ``(status, headers, body)``; a body may be a list of
    parts with pauses between."""

    def __init__(self):
        self.replies = {}
        self.asked = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        self.writers = set()
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    def url(self, path, host="127.0.0.1"):
        return f"http://{host}:{self.port}{path}"

    async def serve(self, reader, writer):
        self.writers.add(writer)
        try:
            while line := await reader.readline():
                path = line.decode().split(" ")[1]
                headers = {}
                while (field := (await reader.readline()).decode().strip()) != "":
                    name, _, value = field.partition(": ")
                    headers[name.lower()] = value
                self.asked.append((path, headers))
                reply = self.replies[path]
                status, said, body = reply.popleft() if isinstance(reply, deque) else reply
                parts = body if isinstance(body, list) else [body]
                if not {"content-length", "transfer-encoding"} & set(said):
                    said = {**said, "content-length": str(sum(len(part) for part in parts if isinstance(part, bytes)))}
                head = "".join(f"{name}: {value}\r\n" for name, value in said.items())
                writer.write(f"HTTP/1.1 {status} Scripted\r\n{head}\r\n".encode())
                for part in parts:
                    if isinstance(part, bytes):
                        writer.write(part)
                        await writer.drain()
                    else:
                        await asyncio.sleep(part)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()


@pytest.fixture
async def shelf():
    async with Shelf() as server:
        server.replies["/dot.png"] = (200, {"content-type": "image/png"}, PNG)
        yield server


@pytest.fixture
async def read():
    readers = []

    async def ask(text, **rules):
        reader = ImageReader(ImageRules(**{"allowed": HERE, "timeout_s": 5.0, **rules}))
        readers.append(reader)
        return await reader.read(text)

    yield ask
    for reader in readers:
        await reader.close()


async def refusal(asking):
    with pytest.raises(TextRefused) as caught:
        await asking
    return caught.value.reason


async def failure(asking):
    with pytest.raises(ModelFailed) as caught:
        await asking
    assert caught.value.reason == "image_unavailable"
    return caught.value


# -- URLs -----------------------------------------------------------------------------------------------------------


async def test_an_image_is_fetched(read, shelf):
    assert await read(" " + shelf.url("/dot.png") + "\n") == PNG
    ((_, headers),) = shelf.asked
    assert headers["host"] == f"127.0.0.1:{shelf.port}" and headers["accept-encoding"] == "identity"
    assert "authorization" not in headers and "cookie" not in headers


async def test_an_address_that_is_not_public_is_refused_unless_it_was_allowed(read, shelf):
    assert await refusal(read(shelf.url("/dot.png"), allowed=Allowed())) == "address_refused"
    assert await refusal(read(shelf.url("/dot.png", "localhost"), allowed=Allowed())) == "address_refused"
    assert await refusal(read(shelf.url("/dot.png", "2130706433"), allowed=Allowed())) == "address_refused"
    assert shelf.asked == []  # not so much as a connection's worth of a request
    assert await read(shelf.url("/dot.png", "localhost"), allowed=Allowed.parse("localhost")) == PNG


async def test_a_redirect_is_followed_and_looked_at_anew(read, shelf):
    shelf.replies["/moved"] = (302, {"location": "/dot.png"}, b"")
    assert await read(shelf.url("/moved")) == PNG
    for target in (f"http://127.0.0.2:{shelf.port}/dot.png", "http://169.254.169.254/latest/meta-data/"):
        shelf.replies["/away"] = (302, {"location": target}, b"")
        assert await refusal(read(shelf.url("/away"))) == "address_refused"
    shelf.replies["/file"] = (302, {"location": "file:///etc/passwd"}, b"")
    assert await refusal(read(shelf.url("/file"))) == "bad_url"


async def test_redirects_end_after_two(read, shelf):
    for i in range(4):
        shelf.replies[f"/{i}"] = (301, {"location": f"/{i + 1}"}, b"")
    shelf.replies["/twice"] = (301, {"location": "/once"}, b"")
    shelf.replies["/once"] = (307, {"location": "/dot.png"}, b"")
    assert await read(shelf.url("/twice")) == PNG
    assert await refusal(read(shelf.url("/0"))) == "redirects"


async def test_more_bytes_than_allowed_are_not_held(read, shelf):
    shelf.replies["/said"] = (200, {"content-length": "9000000"}, [PNG, 60.0])
    started = time.monotonic()
    assert await refusal(read(shelf.url("/said"), most_bytes=1000)) == "image_too_large"
    assert time.monotonic() - started < 2


async def test_a_body_without_a_length_is_cut_off_at_the_bound(read, shelf):
    parts = [b"%x\r\n" % 1024 + b"x" * 1024 + b"\r\n"] * 64
    shelf.replies["/chunks"] = (200, {"transfer-encoding": "chunked"}, [*parts, 60.0])
    started = time.monotonic()
    assert await refusal(read(shelf.url("/chunks"), most_bytes=10_000)) == "image_too_large"
    assert time.monotonic() - started < 2


async def test_a_slow_server_is_tried_again_later(read, shelf):
    shelf.replies["/slow"] = (200, {"content-length": str(len(PNG))}, [PNG[:5], 60.0, PNG[5:]])
    started = time.monotonic()
    error = await failure(read(shelf.url("/slow"), timeout_s=0.2))
    assert time.monotonic() - started < 2 and error.retry_after_s


async def test_a_server_that_is_away_or_busy_is_tried_again_later(read, shelf):
    shelf.replies["/busy"] = (503, {"retry-after": "7"}, b"")
    assert (await failure(read(shelf.url("/busy")))).retry_after_s == 7
    shelf.replies["/cut"] = (200, {"content-length": "500"}, PNG)
    asking = asyncio.create_task(read(shelf.url("/cut")))
    while len(shelf.asked) < 2:
        await asyncio.sleep(0.005)
    for writer in list(shelf.writers):
        writer.close()
    await failure(asking)
    shelf.server.close()
    await failure(read(f"http://127.0.0.1:{shelf.port}/nobody"))


@pytest.mark.parametrize(
    ("status", "headers", "body", "reason"),
    [
        (404, {}, b"", "image_missing"),
        (403, {"content-type": "image/png"}, PNG, "image_missing"),
        (304, {}, b"", "image_missing"),
        (200, {"content-type": "text/html; charset=utf-8"}, PNG, "not_an_image"),
        (200, {"content-type": "image/png"}, b"<html>no</html>", "not_an_image"),
        (200, {"content-type": "image/png"}, PNG[:40], "not_an_image"),
        (200, {"content-type": "image/png", "content-encoding": "gzip"}, PNG, "not_an_image"),
        (200, {"content-type": "image/png"}, b"", "not_an_image"),
        (200, {"content-type": "image/png"}, png(50_000, 50_000), "image_pixels"),
    ],
)
async def test_what_is_no_image_is_the_rows_fault(read, shelf, status, headers, body, reason):
    shelf.replies["/x"] = (status, headers, body)
    assert await refusal(read(shelf.url("/x"))) == reason


@pytest.mark.parametrize("url", ["https://user:secret@host/x", "http://", "http://[::1", "http://" + "a" * 9000 + "/"])
async def test_what_is_no_url_is_the_rows_fault(read, url):
    with pytest.raises(TextRefused) as caught:
        await read(url)
    assert caught.value.reason == "bad_url" and "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "cat.png", "ftp://host/cat.png", "file:///etc/passwd", "data:image/png;base64,x"])
async def test_other_texts_name_no_image(read, text):
    assert await refusal(read(text)) == "no_image"


async def test_the_address_that_was_looked_at_is_the_one_that_is_connected_to(monkeypatch):
    # A name that is public when it is looked at and private when it is connected to: "DNS rebinding".
    answers = deque([["93.184.215.14"], ["127.0.0.1"]])
    connected = []

    async def resolve(host, port, **_):
        return [(2, 1, 6, "", (address, port)) for address in answers.popleft()]

    async def connect(address, port, *_):
        connected.append(address)
        raise httpcore.ConnectError("not in a test")

    backend = GuardedBackend(Allowed())
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    monkeypatch.setattr(backend._inner, "connect_tcp", connect)
    with pytest.raises(httpcore.ConnectError):
        await backend.connect_tcp("rebind.example", 80)
    assert connected == ["93.184.215.14"] and len(answers) == 1
    answers.appendleft(["93.184.215.14", "10.0.0.1"])  # one bad address among good ones spoils the name
    with pytest.raises(TextRefused):
        await backend.connect_tcp("rebind.example", 80)
    assert connected == ["93.184.215.14"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("100.100.100.200", False),
        ("169.254.169.254", False),
        ("168.63.129.16", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::a00:1", False),
        ("64:ff9b::5db8:d70e", True),
        ("2002:7f00:1::1", False),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(ip_address(address)) is public


def test_exceptions_are_names_addresses_and_networks():
    allowed = Allowed.parse("Pictures.internal, 10.1.0.0/16,[fd00::5] ,192.168.1.9")
    assert allowed.takes("pictures.INTERNAL.", ip_address("10.9.9.9"))
    assert allowed.takes("x", ip_address("10.1.200.3")) and not allowed.takes("x", ip_address("10.2.0.1"))
    assert allowed.takes("x", ip_address("fd00::5")) and allowed.takes("x", ip_address("192.168.1.9"))
    assert not allowed.takes("evil-pictures.internal", ip_address("10.9.9.9"))
    with pytest.raises(ModelMisconfigured, match="is no host"):
        Allowed.parse("http://pictures")


# -- files and bytes --------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "dot.png").write_bytes(PNG)
    (folder / "sub/dot.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    return folder


async def test_files_are_read_below_the_allowed_folders_only(read, root, tmp_path):
    assert await read(str(root / "dot.png"), roots=(root,)) == PNG
    assert await read(str(root / "sub/dot.png"), roots=(tmp_path / "none", root)) == PNG
    assert await refusal(read(str(root / "dot.png"))) == "path_refused"  # no folder is the default
    for path in (tmp_path / "secret.png", root / "../secret.png", root, f"{root}-2/dot.png", "/etc/passwd"):
        assert await refusal(read(str(path), roots=(root,))) == "path_refused"
    assert await refusal(read(str(root / "nothing.png"), roots=(root,))) == "image_missing"


async def test_no_link_leads_out_of_the_folder(read, root, tmp_path):
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "out").symlink_to(tmp_path)
    for path in ("link.png", "out/secret.png"):
        assert await refusal(read(str(root / path), roots=(root,))) == "image_missing"
    alias = tmp_path / "alias"
    alias.symlink_to(root)  # whoever sets the folder may name it by a link
    assert await read(str(alias / "dot.png"), roots=(alias,)) == PNG
    assert await read(str(root / "dot.png"), roots=(alias,)) == PNG


async def test_pipes_folders_and_large_files_are_refused_at_once(read, root):
    os.mkfifo(root / "pipe.png")
    async with asyncio.timeout(2):
        assert await refusal(read(str(root / "pipe.png"), roots=(root,))) == "image_missing"
    assert await refusal(read(str(root / "sub"), roots=(root,))) == "image_missing"
    assert await refusal(read(str(root / "dot.png"), roots=(root,), most_bytes=20)) == "image_too_large"


async def test_a_lack_of_descriptors_is_not_the_rows_fault(read, root, monkeypatch):
    def none_left(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("inference.images.os.open", none_left)
    await failure(read(str(root / "dot.png"), roots=(root,)))


async def test_bytea_is_decoded(read):
    assert await read("\\x" + PNG.hex()) == PNG
    assert await refusal(read("\\x89zz")) == "no_image"
    assert await refusal(read("\\x" + PNG.hex(), most_bytes=20)) == "image_too_large"
    assert await refusal(read("\\x" + b"text".hex())) == "not_an_image"


JPEG = bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffc00011080010002003012200021101031101") + b"\xff\xd9"
GIF = b"GIF89a" + struct.pack("<HH", 32, 16) + b"\0\0\0;"
BMP = b"BM" + struct.pack("<IIIIii", 100, 0, 54, 40, 32, -16)
WEBP = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + b"\x1f\0\0\x0f\0\0"


@pytest.mark.parametrize("content", [PNG, JPEG, GIF, BMP, WEBP])
def test_every_kind_of_image_is_known(content):
    check_image(content)
    for broken in (content[:10], b"x" + content):
        with pytest.raises(TextRefused):
            check_image(broken)


def test_a_flood_of_pixels_is_refused_in_every_kind():
    floods = [
        JPEG.replace(bytes.fromhex("00100020"), b"\xff\xff\xff\xff"),
        GIF.replace(struct.pack("<HH", 32, 16), b"\xff\xff\xff\xff"),
        BMP.replace(struct.pack("<ii", 32, -16), struct.pack("<ii", 60000, 60000)),
        WEBP.replace(b"\x1f\0\0\x0f\0\0", b"\xff" * 6),
        png(0, 10),
    ]
    for content in floods:
        with pytest.raises(TextRefused) as caught:
            check_image(content)
        assert caught.value.reason == "image_pixels"


async def test_no_message_quotes_the_url_or_the_path(read, shelf, root):
    shelf.replies["/token=hush"] = (404, {}, b"")
    for text in (shelf.url("/token=hush"), "/private/hush.png", "http://10.0.0.1/hush"):
        with pytest.raises(EmbedError) as caught:
            await read(text, roots=(root,))
        assert "hush" not in str(caught.value) and "10.0.0.1" not in str(caught.value)
