import time, json, secrets, threading
import pytest
from inference.testing_api import Answer, FakeApi
from tests.acceptance.scene import *

def test_drop_and_recreate_table(world):
    t = world.texts(3); id = world.job(t); world.done(id)
    world.db.execute(f"DROP TABLE {t}")
    row = world.until(id, "init_failed_at"); print("R", row["init_failure_reason"])
    world.db.execute(f"CREATE TABLE {t} (id serial primary key, body text)"); world.add(t, "a", "b")
    began=time.time(); converged(world.db, t, timeout_s=30); print("R took", time.time()-began)
    eventually(lambda: world.row(id)["init_failed_at"] is None)

def test_drop_dst_column(world):
    t = world.texts(3); id = world.job(t); world.done(id)
    world.db.execute(f"ALTER TABLE {t} DROP COLUMN v"); world.add(t, "x")
    began=time.time(); converged(world.db, t, timeout_s=30); print("R took", time.time()-began, world.row(id)["init_failure_reason"])

def test_rename_source_column(world):
    t = world.texts(3); id = world.job(t); world.done(id)
    world.db.execute(f"ALTER TABLE {t} RENAME body TO corpus"); world.db.execute(f"INSERT INTO {t} (corpus) VALUES ('n')")
    row = world.until(id, "init_failed_at"); print("R", row["init_failure_reason"])
    world.set(id, src_column="corpus"); began=time.time(); converged(world.db, t, source="corpus", timeout_s=30); print("R took", time.time()-began)
    eventually(lambda: world.row(id)["init_failed_at"] is None)

def test_partitioned(world):
    world.db.execute("CREATE TABLE part (id int primary key, body text) PARTITION BY RANGE (id); CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (10); CREATE TABLE part2 PARTITION OF part FOR VALUES FROM (10) TO (20); INSERT INTO part SELECT i, 't'||i FROM generate_series(1,19) i")
    id = world.job("part"); world.done(id)
    world.db.execute("UPDATE part SET body='c' WHERE id in (3,12)"); world.db.execute("UPDATE part SET id=19-9 WHERE id=5 and false")
    converged(world.db, "part")

def test_view(world):
    t = world.texts(2); world.db.execute(f"CREATE VIEW vw AS SELECT * FROM {t}")
    print("R", world.until(world.job("vw"), "init_failed_at")["init_failure_reason"])

def test_fifty_jobs(world):
    tables = [world.texts(20) for _ in range(25)]
    began = time.time()
    ids = [world.job(t, dst_column=c, embedding_model=f"hash-{d}") for t in tables for c, d in (("v",8),("w",4))]
    for id in ids: world.done(id, 60)
    print("R 50 jobs done in", time.time()-began)
    for t in tables: assert not wrong(world.db, t)
    began = time.time()
    world.cancel_all()
    eventually(lambda: world.db.execute("SELECT count(*) FROM walvec.pipelines WHERE attached").fetchone() == (1,), 60)
    print("R canceled in", time.time()-began)

def test_delete_job_rows(world):
    t = world.texts(3); id = world.job(t); world.done(id)
    world.jobs.execute("DELETE FROM embedding_generation_jobs WHERE id=%s", [id])
    eventually(lambda: world.db.execute("SELECT attached FROM walvec.pipelines WHERE name=%s", [f"public.{t}.v"]).fetchone() == (False,))

def test_flap(world):
    t = world.texts(30); id = world.job(t)
    for i in range(12):
        world.cancel(id); 
        if i % 3: time.sleep(0.05)
        world.db.execute(f"UPDATE {t} SET body='flap {i}' WHERE id={i+1}")
        world.resume(id)
    world.done(id); converged(world.db, t)
    assert world.row(id)["init_failed_at"] is None

def test_edit_model_dim_with_vector_column(world):
    t = world.texts(3); id = world.job(t); world.done(id)
    world.set(id, embedding_model="hash-16")
    row = eventually(lambda: (r:=world.row(id))["init_failed_at"] and r); print("R", row["init_failure_reason"])
    world.set(id, embedding_model="hash-8"); eventually(lambda: world.row(id)["init_failed_at"] is None, 10); converged(world.db, t)

def test_not_null_generated(world):
    t = world.texts(3, more=", v real[] NOT NULL DEFAULT '{}'")
    id = world.job(t); 
    eventually(lambda: (r:=world.row(id))["init_failed_at"] or r["init_finished_at"]); print("R", world.row(id)["init_failure_reason"])

def test_long_names(world):
    n = "t" * 63
    world.db.execute(f"CREATE TABLE {n} (id serial primary key, body text); INSERT INTO {n} (body) VALUES ('a')")
    for c in ("c"*63, "c"*62+"d"):
        world.done(world.job(n, dst_column=c)); converged(world.db, n, target=c)

def test_same_table_other_schema(world):
    world.db.execute("CREATE SCHEMA s1; CREATE SCHEMA \"S.2\"; CREATE TABLE s1.docs (id serial primary key, body text); CREATE TABLE \"S.2\".docs (id serial primary key, body text); INSERT INTO s1.docs (body) VALUES ('a'); INSERT INTO \"S.2\".docs (body) VALUES ('b')")
    for s in ("s1", "S.2"): world.done(world.job("docs", schema=s))
    world.db.execute("INSERT INTO s1.docs (body) VALUES ('c')")
    eventually(lambda: world.db.execute("select count(*) from s1.docs where v is null").fetchone()==(0,))

def test_big_text_and_unicode(world):
    t = world.texts(); id = world.job(t); world.done(id)
    world.add(t, "x"*5_000_000, "ünï\u0000".replace("\u0000","")+"\U0001F600", "a'\"\\b\n\tc")
    converged(world.db, t, timeout_s=30)

def test_limited_role(world):
    name = f"r_{secrets.token_hex(4)}"
    t = world.texts(3)
    world.db.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'pw'; GRANT SELECT ON {t} TO {name}")
    url = world.target.url.replace("postgres:", f"{name}:",1)
    import re
    url = re.sub(r"//[^@]+@", f"//{name}:pw@", world.target.url)
    id = world.job(t, db_connection=url)
    row = world.until(id, "init_failed_at"); print("R", row["init_failure_reason"])
    world.db.execute(f"ALTER TABLE {t} ADD v real[]; GRANT UPDATE (v) ON {t} TO {name}")
    world.done(id, 40)
    world.cancel_all()
    world.db.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
