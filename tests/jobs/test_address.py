"""db_connection in its forms, and what of it people may see."""

import pytest

from cdc.errors import ConfigError
from cdc.postgres.job_address import resolve

URL = "postgres://ann:s3cret@db.example:5433/shop"


def place(connection, environ=None, hosts=()):
    return resolve(connection, environ or {}, hosts).place


def test_every_form_leads_to_the_place(tmp_path):
    file = tmp_path / "dsn"
    file.write_text(URL + "\n")
    services = tmp_path / "services"
    services.write_text("[shop]\nhost=db.example\nport=5433\ndbname=shop\npassword=s3cret\n")
    for connection, environ in [
        (URL, {}),
        (URL.replace("postgres:", "postgresql:"), {}),
        ("host=db.example port=5433 dbname=shop user=ann password=s3cret", {}),
        ("env:SHOP", {"SHOP": URL}),
        (f"file:{file}", {}),
        (f"file://{file}", {}),
        ("service=shop", {"PGSERVICEFILE": str(services)}),
    ]:
        found = resolve(connection, environ, [])
        assert found.place == "db.example:5433/shop", connection
        assert "s3cret" not in repr(found)


@pytest.mark.parametrize(
    "connection",
    ["env:WALVEC_HTTP_TOKEN", "env:PGPASSWORD", "env:MISSING", "file:relative", "file:/no/such/file", ""],
)
def test_what_cannot_be_had_is_refused(connection):
    with pytest.raises(ConfigError):
        resolve(connection, {"WALVEC_HTTP_TOKEN": URL, "PGPASSWORD": URL}, [])


def test_refusals_never_repeat_what_was_typed(tmp_path):
    file = tmp_path / "dsn"
    file.write_text("s3cret garbage")
    for connection in ("postgres://ann:s3c@ret@db/shop", "s3cret", f"file:{file}", "host=x passwort=s3cret"):
        with pytest.raises(ConfigError) as refused:
            resolve(connection, {}, [])
        assert "s3c" not in str(refused.value)


def test_hosts_may_be_listed():
    assert place(URL, hosts=["DB.example"])
    with pytest.raises(ConfigError, match=r"other\.example"):
        place(URL.replace("db.example", "other.example"), hosts=["db.example"])
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1"):
        place("host=db.example hostaddr=10.0.0.1 dbname=shop", hosts=["db.example"])
    with pytest.raises(ConfigError):
        place("host=db.example,evil.example dbname=shop", hosts=["db.example"])
    with pytest.raises(ConfigError):
        place("dbname=shop", hosts=["db.example"])
