"""Every benchmark runs at toy size, and none of them passes over a wrong result."""

from __future__ import annotations

import json
import time

import pytest

from cdc import bench
from cdc.bench import decode, drain, endtoend, latency, memory
from cdc.bench.figures import Figure, WrongResult, ratio, render
from cdc.bench.scene import scene
from cdc.bench.writeback import plain_write
from cdc.testing.cluster import Cluster
from cdc.testing.walbytes import encode, xlog_data


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    assert all(value > 0 for figure in figures for value in figure.values)
    return {figure.name: figure for figure in figures}


def test_a_figure_compares_its_median_with_its_target():
    rate = Figure("rate", "rows/s", (90.0, 200.0, 110.0), 100)
    wait = Figure("wait", "ms", (9.0, 20.0, 11.0), 10, "lower")
    assert rate.met is True and wait.met is False and Figure("x", "x", (1.0,)).met is None
    assert ratio("r", [4.0, 9.0], [2.0, 3.0], 1.0).values == (2.0, 3.0)
    assert rate.to_json() == {
        "name": "rate", "unit": "rows/s", "median": 110.0, "min": 90.0, "max": 200.0, "runs": 3,
        "target": 100, "better": "higher", "met": True,
    }  # fmt: skip


def test_the_table_has_a_line_per_figure_and_says_what_was_missed():
    lines = render([Figure("rate", "rows/s", (123456.0,), 300_000), Figure("plain", "x", (0.5,))]).splitlines()
    assert lines[2].split() == [
        "rate",
        "123,456",
        "rows/s",
        "123,456",
        "123,456",
        "1",
        ">=",
        "300,000",
        "rows/s",
        "MISSED",
    ]
    assert lines[3].split() == ["plain", "0.50", "x", "0.50", "0.50", "1"]


def test_decode():
    figures = decode.run(rows=2000, repeat=2)
    assert [len(figure.values) for figure in figures] == [2, 2, 2]
    by_name(figures)


def test_decoding_less_than_all_is_a_wrong_result():
    payloads = [xlog_data(encode(insert)) for insert in decode.inserts(3)]
    payloads[1] = payloads[1][:25] + b"U" + payloads[1][26:]
    with pytest.raises(WrongResult, match="2 of 3"):
        decode.decode_alone(payloads)


def test_drain(pg18: Cluster):
    figures = by_name(drain.run(pg18, rows=3000, repeat=1))
    theirs, ours, compared = figures.values()
    assert compared.values == (ours.values[0] / theirs.values[0],)


def test_plain_writing_without_pgvector(pg15: Cluster):
    with scene(pg15) as stage:
        assert plain_write(stage, 1500, "off") > 0
        assert plain_write(stage, 1500, "local") > 0


def test_backfill_and_stream(pg18: Cluster):
    assert "backfill of 1,500 rows" in by_name(endtoend.backfill(pg18, rows=1500, repeat=1))
    assert "stream backlog of 1,500 rows" in by_name(endtoend.stream(pg18, rows=1500, repeat=1))


def test_a_row_without_its_embedding_is_a_wrong_result(pg18: Cluster):
    with scene(pg18) as stage:
        stage.insert(1, 10)
        with stage.consumer() as consumer:
            stage.wait_for_embeddings(10, consumer)
            stage.connection.execute("DELETE FROM articles_embeddings WHERE id = 3")
            with pytest.raises(WrongResult, match="missing"):
                stage.check(consumer)
            consumer.stop()
            with pytest.raises(WrongResult, match="ended"):
                stage.wait_for_embeddings(11, consumer)


def test_latency(pg18_with_commit_times: Cluster):
    began = time.monotonic()
    middle, slow = latency.run(pg18_with_commit_times, rows=40, repeat=1)
    assert 0 < middle.median <= slow.median < (time.monotonic() - began) * 1000


def test_memory(pg18: Cluster):
    for figure in memory.run(pg18, rows=2000, repeat=1):
        assert 20 < figure.median < 400  # the process alone takes more than the one, and never the other


def test_the_command_prints_json_and_its_status_tells_a_wrong_result(monkeypatch, capsys):
    def fails(cluster: Cluster, rows: int | None, repeat: int) -> list[Figure]:
        raise WrongResult("2 of 3 rows")

    assert bench.main(["decode", "--rows", "500", "--repeat", "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "PostgreSQL 18" in answer["machine"] and len(answer["figures"]) == 3
    monkeypatch.setitem(bench._BENCHMARKS, "decode", (fails, 1, ""))
    assert bench.main(["decode"]) == 1
    assert "decode: wrong result: 2 of 3 rows" in capsys.readouterr().err


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit) as refused:
        bench.main(["sprint"])
    assert refused.value.code == 2 and "latency" in capsys.readouterr().err
