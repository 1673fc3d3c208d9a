"""Who may ask what."""

import pytest

OPEN = ["/livez", "/readyz"]
GUARDED = ["/", "/metrics", "/healthz", "/status", "/series", "/nothing"]
TOKEN = "a-long-token"


@pytest.fixture
def client(serve):
    return serve(token=TOKEN)


@pytest.mark.parametrize("path", OPEN)
def test_an_orchestrator_needs_no_token(client, path):
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", GUARDED)
def test_all_else_needs_it(client, path):
    reply = client.get(path)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code != 401


@pytest.mark.parametrize("path", ["/v1/search", "/v1/sync"])
def test_posts_need_it_before_they_are_read(client, engine, path):
    assert client.post(path, json={"pipeline": "p", "query": "q"}).status_code == 401
    assert not engine.asked


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x", f"bearer {TOKEN[:-1]}", TOKEN, "Basic %%%", "Basic eDp5"],
)  # fmt: skip
def test_wrong_credentials(client, authorization):
    reply = client.get("/status", headers={"Authorization": authorization})
    assert reply.status_code == 401
    assert TOKEN not in reply.text


def test_a_browser_gives_it_as_password(client):
    assert client.get("/", auth=("anyone", TOKEN)).status_code == 200
    assert client.get("/", auth=(TOKEN, "anyone")).status_code == 401


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"Host": "localhost:9464"}, 200),
        ({"Host": "[::1]:9464"}, 200),
        ({"Host": "10.0.0.7"}, 200),
        ({"Host": "evil.example"}, 403),  # a name made to point here (DNS rebinding)
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "["}, 403),
        ({"Host": "localhost:9464", "Origin": "http://localhost:9464"}, 200),
        ({"Host": "localhost:9464", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost:9464", "Origin": "null"}, 403),
    ],
)
def test_without_a_token_pages_of_other_sites_are_refused(serve, headers, code):
    reply = serve().get("/status", headers=headers)
    assert reply.status_code == code
    assert ("error" in reply.json()) == (code == 403)


def test_with_a_token_any_name_will_do(client):
    headers = {"Host": "walvec.example", "Authorization": f"Bearer {TOKEN}"}
    assert client.get("/status", headers=headers).status_code == 200
