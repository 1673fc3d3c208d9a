"""Secrets planted in every shape people write them in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import ConfigError
from cdc.postgres.connect import URL_SHAPE, parse_dsn, secrets_in
from cdc.telemetry.redact import MASK, Redactor

SECRET = "s3cr3t"

SHAPES = [
    "postgresql://ann:s3cr3t@db.example/shop",
    "postgresql://ann:s3cr3t@db/shop, postgresql://bob:s3cr3t@db2/shop",
    "postgresql://ann:x@s3cr3t@db/shop",
    "postgresql://ann:x/s3cr3t@db/shop",
    "postgresql://ann:x@y/s3cr3t@db/shop",
    "grpcs://s3cr3t@triton:8001",
    "host=db password=s3cr3t dbname=shop",
    "host=db password = 's3cr3t' dbname=shop",
    r"host=db password='it\'s s3cr3t' dbname=shop",
    "postgresql://db/shop?password=s3cr3t&sslmode=require",
    '{"password": "a s3cr3t", "user": "ann"}',
    "{'api_key': 's3cr3t'}",
    "ALTER ROLE ann PASSWORD 'x s3cr3t'",
    "Authorization: Bearer s3cr3t",
    "bearer s3cr3t",
    "WALVEC_HTTP_TOKEN=s3cr3t",
    "AWS_SECRET_ACCESS_KEY=s3cr3t",
    "PGPASSWORD=s3cr3t",
]


@pytest.mark.parametrize("text", SHAPES)
def test_secret_shapes(text):
    clean = Redactor().text(text)
    assert SECRET not in clean
    assert MASK in clean


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://db.example:5432/shop",
        "grpc://a:8001,grpc://b:8001",
        "max_tokens=256 tokens: 12",
        "password authentication failed for user ann",
        "mail ann@example.org",
        "https://host/path?a=b",
    ],
)
def test_harmless_text_stays(text):
    assert Redactor().text(text) == text


def test_names_tell():
    redactor = Redactor()
    for name in ("password", "db_password", "http_token", "dsn", "Authorization", "client_secret", "apiKey", "api-key"):
        assert redactor.field(name, "x") == MASK, name
        assert redactor.field(name, ["x", "y"]) == MASK, name
    assert redactor.field("tokens", 12) == 12
    assert redactor.field("token", None) is None
    assert redactor.field("http_token", True) is True


def test_containers_are_searched_to_the_bottom():
    class Odd:
        def __repr__(self):
            return "Odd(password=s3cr3t)"

    deep = {"a": [({"dsn": SECRET}, Odd(), ValueError(SHAPES[0]))], "token=s3cr3t": 1}
    assert SECRET not in repr(Redactor().value(deep))


def test_known_secrets_go_in_any_shape():
    redactor = Redactor(["p@ss/w rd", "p@ss", ""])
    for text in ("it was p@ss/w rd!", "in a URL p%40ss%2Fw%20rd!", "or p%40ss/w%20rd"):
        clean = redactor.text(text)
        assert "ss" not in clean
        assert "rd" not in clean
    assert Redactor(["ab"]).text("about") == "about"


def test_a_password_that_is_a_common_word_is_hidden_as_a_word_and_leaves_others_readable():
    redactor = Redactor(["postgres", "walvec"])
    for text in ("it was postgres!", "'postgres'", "db_postgres", "x:postgres@", r"'one\npostgres'", "postgres"):
        assert "postgres" not in redactor.text(text), text
    for text in ("postgresql://db:5432/shop", "the postgresql server", "WALVEC_DATABASE_URL", "walvecs"):
        assert redactor.text(text) == text


@pytest.mark.parametrize("secret", ["hunter2", "#word", "word!", "sk-word", "wörd", "1234567"])
def test_any_other_secret_is_hidden_inside_of_words_too(secret):
    for text in (f"x{secret}y", f"_{secret}_", f"\\n{secret}", f"1{secret}1"):
        assert secret not in Redactor([secret]).text(text), text


def test_what_a_url_shows_anyway_is_no_known_secret():
    assert secrets_in(parse_dsn("postgresql://postgres:postgres@db/shop")) == []
    assert secrets_in(parse_dsn("postgresql://ann:shop@db/shop?sslpassword=hunter2")) == ["hunter2"]
    assert secrets_in(parse_dsn("postgresql://ann:hunter2@db/shop")) == ["hunter2"]
    assert secrets_in(parse_dsn("host=db password=hunter2"), "hunter2") == []
    text = Redactor().text("postgresql://postgres:postgres@db/shop and host=db password=postgres")
    assert text == f"postgresql://{MASK}@db/shop and host=db password={MASK}"


def test_how_a_url_is_written_can_be_read():
    with pytest.raises(ConfigError) as caught:
        parse_dsn("no such thing")
    assert Redactor().text(str(caught.value)) == str(caught.value)
    assert URL_SHAPE in str(caught.value)


def test_row_values_in_server_messages_go():
    message = (
        'null value in column "title" violates not-null constraint\n'
        "DETAIL:  Failing row contains (1, Dear diary\n\nsecond line, 2).\n"
        "HINT:  Fill it.\n"
        "\nThe above exception was the direct cause\n"
        'LINE 1: SELECT "Dear diary"\n        ^'
    )
    clean = Redactor().text(message)
    assert "diary" not in clean
    assert "second" not in clean
    assert "HINT:  Fill it." in clean
    assert "not-null constraint" in clean
    assert "The above exception" in clean


@given(
    st.text(st.characters(exclude_categories=("Cs", "Z", "C"), exclude_characters="'\"\\"), min_size=12, max_size=40)
)
def test_no_password_survives_in_a_url(password):
    # A password of one word: whatever is in it, none of its longer parts is shown.
    clean = Redactor().text(f"cannot reach postgresql://ann:{password}@db:5432/shop: timeout")
    assert clean == f"cannot reach postgresql://{MASK}@db:5432/shop: timeout"


@given(st.text())
def test_any_text_is_taken(text):
    Redactor([text]).text(text)
