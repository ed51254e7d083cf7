"""Jobs outlive their server, are done once, and go when their time is over."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from diffplugin.errors import DiffPluginError
from diffplugin.runtime.serve.job import Job, JobRequest
from diffplugin.runtime.serve.rows import MAX_ATTEMPTS
from diffplugin.runtime.serve.store import JobStore, KeyReused, QueueFull

REQUEST = JobRequest(bundle="b", plugins=("derain",), size=(64, 48), suffix=".png", region=(1, 2, 3, 4))


def add(store: JobStore, name: str, **values: Any) -> Job:
    file = store.path("incoming", name)
    file.write_bytes(b"photo")
    row = {"id": name, "owner": "", "request": REQUEST, "name": f"{name}.png", "width": 8, "height": 8, "digest": "d"}
    return store.add({**row, **values}, {"inputs": file}, max_queue=10)[0]


def finish(store: JobStore, job: Job) -> None:
    store.path("results", f"{job.id}.png").write_bytes(b"result")
    assert store.finish(job, "done", result=f"{job.id}.png", report={"seconds": 1.5})


def test_a_job_goes_through_its_states(tmp_path: Path) -> None:
    with JobStore(tmp_path) as store:
        job = add(store, "a")
        assert (job.state, job.request, job.report) == ("queued", REQUEST, None)
        assert store.path("inputs", "a").read_bytes() == b"photo" and not store.path("incoming", "a").exists()
        second = add(store, "b")
        assert (store.ahead(job), store.ahead(second)) == (0, 1)
        claimed = store.claim()
        assert claimed is not None and (claimed.id, claimed.state, claimed.attempts) == ("a", "running", 1)
        finish(store, job)
        assert not store.finish(job, "failed"), "a job ends once"
        done = store.get("a")
        assert done is not None and done.report == {"seconds": 1.5} and done.is_finished
        assert not store.path("inputs", "a").exists()
        assert not store.cancel_queued(job, {}) and store.cancel_queued(second, {"detail": "x"})
        assert store.claim() is None


def test_a_killed_servers_jobs_are_found_again(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    jobs = {name: add(store, name, attached=name == "attached") for name in ("running", "queued", "done", "attached")}
    assert [job.id for job in (store.claim(), store.claim(), store.claim()) if job] == ["running", "queued", "done"]
    store.hand_back(jobs["queued"])
    finish(store, jobs["done"])
    store.path("incoming", "half").write_bytes(b"x")
    for unfinished in (store.path("results", ".diffplugin-1.tmp"), tmp_path / ".diffplugin-2.tmp"):
        unfinished.write_bytes(b"x")
    store._lock.close()  # what the kernel does for a killed server; nothing else was tidied
    store._db.close()
    with JobStore(tmp_path) as again:
        assert again.recover() == (2, 1)
        first, second = again.claim(), again.claim()
        assert first is not None and second is not None and [first.id, second.id] == ["running", "queued"]
        assert (first.attempts, second.attempts) == (2, 1)
        lost = again.get("attached")
        assert lost is not None and lost.state == "cancelled" and "connection" in (lost.problem or {})["detail"]
        assert again.path("results", "done.png").read_bytes() == b"result"
        assert not list(again.path("incoming", "x").parent.iterdir())
        assert [file.name for file in (tmp_path / "results").iterdir()] == ["done.png"]
        assert not list(tmp_path.glob(".diffplugin-*"))


def test_a_photo_that_kills_servers_is_given_up(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    add(store, "bad")
    for attempt in range(MAX_ATTEMPTS):
        job = store.claim()
        assert job is not None and job.attempts == attempt + 1
        store._lock.close()
        store._db.close()
        store = JobStore(tmp_path)
        store.recover()
    job = store.get("bad")
    store.close()
    assert job is not None and job.state == "failed" and (job.problem or {})["kind"] == "crashed"


def test_keys_and_the_limit(tmp_path: Path) -> None:
    with JobStore(tmp_path) as store:
        first = add(store, "a", key="k")
        assert add(store, "b", key="k").id == first.id
        assert add(store, "c", key="k", owner="other").id == "c", "keys are each caller's own"
        with pytest.raises(KeyReused, match="'k'"):
            add(store, "d", key="k", digest="other")
        for i in range(8):
            add(store, f"x{i}")
        with pytest.raises(QueueFull, match="10 jobs wait"):
            add(store, "y")
        assert store.get("y") is None


def test_what_is_old_goes_with_its_files(tmp_path: Path) -> None:
    with JobStore(tmp_path) as store:
        old = add(store, "old")
        store.claim()
        finish(store, old)
        add(store, "new")
        assert store.expire(3600) == 0
        time.sleep(0.02)
        assert store.expire(0.01) == 1
        assert store.get("old") is None and store.get("new") is not None
        assert not list((tmp_path / "results").iterdir())


def test_nobody_else_reads_the_jobs(tmp_path: Path) -> None:
    JobStore(tmp_path / "deep" / "state").close()
    assert (tmp_path / "deep" / "state").stat().st_mode & 0o777 == 0o700


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    with JobStore(tmp_path), pytest.raises(DiffPluginError, match="another dp-serve uses this folder"):
        JobStore(tmp_path)


def test_a_damaged_or_newer_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "jobs.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(DiffPluginError, match=r"jobs\.sqlite: file is not a database"):
        JobStore(tmp_path / "a")
    JobStore(tmp_path / "b").close()
    with sqlite3.connect(tmp_path / "b" / "jobs.sqlite") as db:
        db.execute("PRAGMA user_version=9")
    db.close()
    with pytest.raises(DiffPluginError, match="format 9, this version reads up to 1"):
        JobStore(tmp_path / "b")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiffPluginError, match="cannot hold the server's state"):
        JobStore(tmp_path / "file")


def test_many_threads_claim_each_job_once(tmp_path: Path) -> None:
    with JobStore(tmp_path) as store:
        for i in range(10):
            add(store, f"j{i}")
        claimed: list[str] = []

        def work() -> None:
            while (job := store.claim()) is not None:
                claimed.append(job.id)
                store.finish(job, "done")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(claimed) == sorted(f"j{i}" for i in range(10))
