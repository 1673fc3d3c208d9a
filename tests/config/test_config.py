"""Settings from environment and flags: values, origins, refusals, and the page made from them."""

import dataclasses
import re
from pathlib import Path

import pytest

from cdc import config
from cdc.errors import ConfigError

CONTRACT_DEFAULTS = {
    "database_url": "",
    "publication": "walvec",
    "slot": "walvec",
    "schema": "walvec",
    "runtime": "ort",
    "triton_url": "",
    "model": "all-minilm-l6-v2",
    "batch_rows": 256,
    "batch_tokens": 16384,
    "batch_delay_ms": 0.0,
    "query_prefix": "",
    "document_prefix": "",
    "openai_url": "",
    "openai_key": "",
    "cohere_url": "",
    "cohere_key": "",
    "dimensions": 0,
    "input_type": "",
    "triton_ca_file": "",
    "triton_cert_file": "",
    "triton_key_file": "",
    "triton_token": "",
    "triton_headers": "",
    "model_output": "",
    "tokenizer": "",
    "pooling": "auto",
    "normalize": "auto",
    "max_tokens": 0,
    "inflight": 4,
    "inflight_max": 0,
    "request_timeout_s": 30.0,
    "max_attempts": 8,
    "queue_bytes": 64 * 1024 * 1024,
    "queue_rows": 1_000_000,
    "http": "127.0.0.1:9464",
    "http_token": "",
    "on_slot_lost": "reconcile",
    "vector_type": "vector",
    "index": "hnsw",
    "log_level": "info",
    "log_format": "auto",
    "models_dir": "",
    "index_dir": "walvec-index",
    "index_threads": 0,
    "index_memory": 0,
    "index_rebuild_percent": 25,
    "model_stand_in": "on",
    "ort_jobs": "ort",
    "job_secrets": "",
    "job_hosts": "",
    "completions": 8,
    "completion_timeout_s": 120.0,
    "image_hosts": "",
    "image_roots": "",
}


def refused(environ, flags=None):
    with pytest.raises(ConfigError) as caught:
        config.load(environ, flags)
    return str(caught.value)


def test_defaults_are_the_contracts():
    settings = config.load({})
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.name != "origins"}
    assert values == CONTRACT_DEFAULTS


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.load({}).slot = "other"


def test_every_setting_reads_its_variable_and_its_flag():
    samples = {
        "database_url": "postgresql://h/d", "publication": "Ünï pub", "slot": "s_1", "schema": "Odd Schema",
        "runtime": "hash",
        "triton_url": "grpc://a:8001,grpc://b:8001", "model": "m", "batch_rows": "7", "batch_tokens": "7",
        "batch_delay_ms": "1.5", "inflight": "2", "request_timeout_s": "1.5", "max_attempts": "3",
        "queue_bytes": "2MiB",
        "queue_rows": "10", "http": "off", "http_token": "t", "on_slot_lost": "stop", "vector_type": "real[]",
        "index": "off", "log_level": "debug", "log_format": "json",
        "query_prefix": "q: ", "document_prefix": "none", "openai_url": "http://tei:8080/v1", "openai_key": "sk",
        "cohere_url": "https://c", "cohere_key": "co", "dimensions": "256", "input_type": "clustering",
        "triton_ca_file": __file__, "triton_cert_file": __file__, "triton_key_file": __file__, "triton_token": "t",
        "triton_headers": "x-a=b", "model_output": "o", "tokenizer": __file__, "pooling": "cls", "normalize": "on",
        "max_tokens": "256", "inflight_max": "9",
        "models_dir": str(Path(__file__).parent), "index_dir": "indexes", "index_threads": "2", "index_memory": "2GiB",
        "index_rebuild_percent": "10", "model_stand_in": "off", "ort_jobs": "triton",
        "job_secrets": str(Path(__file__).parent), "job_hosts": "db.example", "completions": "2",
        "completion_timeout_s": "5", "image_hosts": "images.example", "image_roots": str(Path(__file__).parent),
    }  # fmt: skip
    assert set(samples) == {s.field for s in config.table()}
    by_env = config.load({f"WALVEC_{name.upper()}": value for name, value in samples.items()})
    by_flag = config.load({}, samples)
    assert by_env == by_flag
    assert set(by_env.origins.values()) == {"environment"}
    assert set(by_flag.origins.values()) == {"flag"}
    for name in samples:
        assert getattr(by_env, name) != CONTRACT_DEFAULTS[name], name


def test_runtime_follows_the_triton_url():
    assert config.load({"WALVEC_TRITON_URL": "grpc://h:8001"}).runtime == "triton"
    assert config.load({"WALVEC_TRITON_URL": "grpc://h:8001", "WALVEC_RUNTIME": "ort"}).runtime == "ort"
    assert "WALVEC_TRITON_URL" in refused({"WALVEC_RUNTIME": "triton"})


def test_requests_in_flight_grow_only_where_nobody_set_them():
    assert config.load({}).most_inflight == 16
    assert config.load({"WALVEC_INFLIGHT": "1"}).most_inflight == 1
    assert config.load({"WALVEC_INFLIGHT": "2", "WALVEC_INFLIGHT_MAX": "8"}).most_inflight == 8


def test_headers_for_triton(tmp_path):
    file = tmp_path / "headers"
    file.write_text("x-team = search\nauthorization=Basic a,b==\n")
    settings = config.load({"WALVEC_TRITON_HEADERS_FILE": str(file), "WALVEC_TRITON_TOKEN": "t"})
    assert settings.triton_metadata == {"authorization": "Basic a,b==", "x-team": "search"}
    assert config.load({"WALVEC_TRITON_HEADERS": "a=1, b=2"}).triton_metadata == {"a": "1", "b": "2"}
    assert config.load({"WALVEC_TRITON_TOKEN": "t"}).triton_metadata == {"authorization": "Bearer t"}
    for bad in ("secret", "na me=secret", "a=se\tcret"):
        message = refused({"WALVEC_TRITON_HEADERS": bad})
        assert "name=value" in message and "cret" not in message


def test_files_that_are_not_there_are_named():
    assert "a file that is there" in refused({"WALVEC_TOKENIZER": "/nowhere/tokenizer.json"})


def test_what_changes_the_vectors_changes_the_recipe():
    assert config.load({"WALVEC_MODEL": "m", "WALVEC_QUERY_PREFIX": "q: "}).recipe == "m"
    recipes = {config.load({f"WALVEC_{name}": value}).recipe for name, value in [
        ("POOLING", "cls"), ("NORMALIZE", "on"), ("DOCUMENT_PREFIX", "d: "), ("MAX_TOKENS", "64"), ("MODEL", "m"),
    ]}  # fmt: skip
    assert len(recipes) == 5 and config.load({}).recipe not in recipes


def test_a_flag_wins_over_the_environment_and_says_so():
    settings = config.load({"WALVEC_SLOT": "a"}, {"slot": "b"})
    assert (settings.slot, settings.origins["slot"], settings.origins["schema"]) == ("b", "flag", "default")


def test_an_empty_variable_counts_as_unset():
    assert config.load({"WALVEC_SLOT": ""}).slot == "walvec"


def test_secrets_come_from_files_too(tmp_path):
    file = tmp_path / "url"
    file.write_text("postgresql://u:hunter2@h/d\n")
    by_env = config.load({"WALVEC_DATABASE_URL_FILE": str(file)})
    by_flag = config.load({"WALVEC_DATABASE_URL": "host=other"}, {"database_url_file": str(file)})
    assert by_env.database_url == by_flag.database_url == "postgresql://u:hunter2@h/d"
    assert by_env.origins["database_url"] == by_flag.origins["database_url"] == "file"


def test_secret_files_that_cannot_be_used_are_named(tmp_path):
    missing = tmp_path / "missing"
    assert str(missing) in refused({"WALVEC_HTTP_TOKEN_FILE": str(missing)})
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert "empty" in refused({"WALVEC_HTTP_TOKEN_FILE": str(empty)})
    assert "both set" in refused({"WALVEC_HTTP_TOKEN": "x", "WALVEC_HTTP_TOKEN_FILE": str(empty)})
    assert "both given" in refused({}, {"http_token": "x", "http_token_file": str(empty)})


@pytest.mark.parametrize(
    ("name", "near"),
    [("WALVEC_DATABASE_URI", "WALVEC_DATABASE_URL"), ("WALVEC_BATCHROWS", "WALVEC_BATCH_ROWS")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, near):
    assert refused({name: "hunter2"}) == f"{name} is not a setting of walvec. Did you mean {near}?"


def test_a_file_variant_exists_only_for_secrets():
    assert "is not a setting" in refused({"WALVEC_SLOT_FILE": "/x"})


def test_what_kubernetes_injects_beside_a_service_is_let_be():
    names = ["WALVEC_SERVICE_HOST", "WALVEC_SERVICE_PORT", "WALVEC_SERVICE_PORT_METRICS", "WALVEC_PORT",
             "WALVEC_PORT_9464_TCP", "WALVEC_PORT_9464_TCP_ADDR", "WALVEC_DEMO_SERVICE_HOST"]  # fmt: skip
    assert config.load(dict.fromkeys(names, "tcp://10.0.0.1:9464")) == config.load({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BATCH_ROWS", "0"), ("BATCH_ROWS", "many"), ("BATCH_ROWS", "-1"), ("BATCH_DELAY_MS", "nan"),
        ("REQUEST_TIMEOUT_S", "inf"), ("QUEUE_BYTES", "64 MiBs"), ("QUEUE_BYTES", "1"), ("SLOT", "Wal-Vec"),
        ("SLOT", "x" * 64), ("SCHEMA", "pg_walvec"), ("PUBLICATION", "ä" * 32), ("RUNTIME", "gpu"),
        ("TRITON_URL", "triton:8001"), ("TRITON_URL", "grpc://a:1,http://b:1"), ("HTTP", "9464"), ("HTTP", "h:99999"),
        ("ON_SLOT_LOST", "ignore"), ("VECTOR_TYPE", "bit"), ("INDEX", "ivf"), ("LOG_LEVEL", "loud"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name_with_what_is_allowed(name, value):
    message = refused({f"WALVEC_{name}": value})
    assert f"WALVEC_{name}" in message and repr(value) in message and "It takes" in message


def test_a_wrong_secret_is_not_repeated():
    assert "hunter2" not in refused({"WALVEC_DATABASE_URL": "hunter2"})


@pytest.mark.parametrize(
    ("text", "size"), [("64MiB", 1 << 26), ("67108864", 1 << 26), ("1 GiB", 1 << 30), ("64mb", 64_000_000)]
)
def test_sizes(text, size):
    assert config.load({"WALVEC_QUEUE_BYTES": text}).queue_bytes == size


@pytest.mark.parametrize(
    ("text", "address"), [("off", None), ("0.0.0.0:80", ("0.0.0.0", 80)), ("[::1]:9464", ("::1", 9464))]
)
def test_listening_addresses(text, address):
    assert config.load({"WALVEC_HTTP": text}).http_address == address


def test_nothing_shown_or_printed_holds_a_secret():
    settings = config.load({"WALVEC_DATABASE_URL": "postgresql://u:hunter2@db.corp/d", "WALVEC_HTTP_TOKEN": "hunter2"})
    for redact in (False, True):
        text = repr(list(config.shown(settings, redact=redact)))
        assert "hunter2" not in text
        assert ("db.corp" in text) is not redact
    assert "hunter2" not in repr(settings) + str(settings)


def test_units_are_in_the_names_of_quantities():
    unit = re.compile(r"_(rows|tokens|ms|s|bytes|percent)$")
    quantities = {name for name, value in CONTRACT_DEFAULTS.items() if isinstance(value, (int, float))}
    counts = {"inflight", "inflight_max", "max_attempts", "dimensions", "index_threads", "index_memory", "completions"}
    assert {name for name in quantities if not unit.search(name)} == counts


def test_the_documentation_is_current():
    page = Path(config.__file__).parents[1] / "docs" / "configuration.md"
    assert page.read_text("utf-8") == config.markdown(), "python -m cdc.config > docs/configuration.md"
