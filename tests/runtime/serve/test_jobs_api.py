"""The API as clients see it: jobs, events, cancel, plan, refusals."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable

import pytest
from PIL import Image

from tests.runtime.conftest import PLUGINS
from tests.runtime.serve.conftest import WAIT, Gate, Running, photo_bytes

Serve = Callable[..., Running]


def test_a_job_is_queued_followed_and_fetched(serve: Serve, gate: Gate) -> None:
    running = serve()
    gate.opened.clear()
    first = running.post("/v1/jobs", data={"prompt": "rain", "steps": "4"})
    assert first.status_code == 202
    job = first.json()
    assert first.headers["location"] == f"/v1/jobs/{job['id']}"
    gate.wait_inside()
    second = running.post("/v1/jobs").json()
    assert (second["state"], second["queue_position"]) == ("queued", 1)
    third = running.post("/v1/jobs").json()
    assert third["queue_position"] == 2 and third["seconds_left"] > 0
    seen = running.get(f"/v1/jobs/{job['id']}").json()
    assert (seen["state"], seen["step"], seen["steps"], seen["plugin"]) == ("running", 0, 4, "derain")
    assert running.get(f"/v1/jobs/{job['id']}/result").status_code == 409
    gate.opened.set()
    done = running.wait(job["id"])
    assert done["selection"]["chosen"] == ["derain"] and done["seconds"] >= 0 and done["links"]["result"]
    assert running.get(done["links"]["result"]).headers["content-type"] == "image/png"
    listed = running.get("/v1/jobs").json()["jobs"]
    assert [one["id"] for one in listed] == [third["id"], second["id"], job["id"]]
    page = running.get("/v1/jobs?limit=2").json()
    assert len(page["jobs"]) == 2
    assert [one["id"] for one in running.get(f"/v1/jobs?before={page['next']}").json()["jobs"]] == [job["id"]]


def test_events_tell_every_change(serve: Serve, gate: Gate) -> None:
    running = serve()
    gate.opened.clear()
    job = running.post("/v1/jobs", data={"prompt": "rain", "steps": "2"}).json()
    gate.wait_inside()
    names, last = [], {}
    with running.client() as client, client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("event:"):
                names.append(line[7:])
                gate.opened.set()
            if line.startswith("data:"):
                last = json.loads(line[6:])
    assert names[0] == "progress" and names[-1] == "done"
    assert last["id"] == job["id"] and last["state"] == "done"


def test_cancel_between_steps_and_in_the_queue(serve: Serve, gate: Gate) -> None:
    running = serve()
    gate.opened.clear()
    first, second = (running.post("/v1/jobs", data={"prompt": "rain", "steps": "9"}).json() for _ in range(2))
    gate.wait_inside()
    with running.client() as client:
        waiting = client.delete(f"/v1/jobs/{second['id']}")
        assert (waiting.status_code, waiting.json()["state"]) == (200, "cancelled")
        active = client.delete(f"/v1/jobs/{first['id']}")
        assert (active.status_code, active.json()["cancelling"]) == (202, True)
        gate.opened.set()
        ended = running.wait(first["id"], "cancelled")
        assert ended["problem"]["detail"] == "cancelled by the caller"
        assert client.get(f"/v1/jobs/{first['id']}/result").status_code == 409
        assert client.delete(f"/v1/jobs/{first['id']}").status_code == 204
        assert client.get(f"/v1/jobs/{first['id']}").status_code == 404


def test_one_bad_photo_stops_nobody(serve: Serve) -> None:
    running = serve()
    whole = photo_bytes(200, 300)
    jobs = [
        running.post("/v1/jobs", photo=data).json()["id"]
        for data in (photo_bytes(), whole[: len(whole) // 2], photo_bytes(seed=3))
    ]
    assert [running.wait(job, "done", "failed")["state"] for job in jobs] == ["done", "failed", "done"]
    problem = running.get(f"/v1/jobs/{jobs[1]}").json()["problem"]
    assert problem["detail"].startswith("photo.png: truncated or damaged") and problem["status"] == 422


def test_the_same_key_runs_once(serve: Serve, gate: Gate) -> None:
    running = serve()
    gate.opened.clear()
    key = {"Idempotency-Key": "order-1"}
    first, again = (running.post("/v1/jobs", headers=key) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json()["id"] == first.json()["id"] and again.headers["idempotent-replayed"] == "true"
    other = running.post("/v1/jobs", headers=key, data={"prompt": "blur"})
    assert (other.status_code, other.json()["kind"]) == (422, "key-reused")
    gate.opened.set()
    assert running.post(headers=key).headers["diffplugin-job"] == first.json()["id"]
    assert len(running.get("/v1/jobs").json()["jobs"]) == 1
    assert running.post("/v1/jobs", headers={"Idempotency-Key": "x" * 300}).status_code == 400


def test_a_caller_who_leaves_ends_the_work_unless_it_has_a_key(serve: Serve, gate: Gate) -> None:
    running = serve()
    gate.opened.clear()
    boundary = "b"
    body = (
        (
            f'--{boundary}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nrain\r\n--{boundary}\r\n'
            f'Content-Disposition: form-data; name="image"; filename="p.png"\r\n\r\n'
        ).encode()
        + photo_bytes()
        + f"\r\n--{boundary}--\r\n".encode()
    )
    for key in ("", "Idempotency-Key: k\r\n"):
        head = (
            f"POST /v1/restore HTTP/1.1\r\nHost: 127.0.0.1\r\n{key}"
            f"Content-Type: multipart/form-data; boundary={boundary}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            connection.sendall(head + body)
            gate.wait_inside()
            gate.entered.clear()
        if not key:
            job = running.get("/v1/jobs").json()["jobs"][0]["id"]
            deadline = threading.Event()
            for _ in range(200):
                if running.get(f"/v1/jobs/{job}").json().get("cancelling"):
                    break
                deadline.wait(0.02)
            gate.opened.set()
            running.wait(job, "cancelled")
            gate.opened.clear()
    gate.opened.set()
    running.wait(running.get("/v1/jobs").json()["jobs"][0]["id"], "done")


def test_a_full_queue_answers_at_once(serve: Serve, gate: Gate) -> None:
    running = serve(max_queue=2)
    gate.opened.clear()
    running.post("/v1/jobs")
    gate.wait_inside()
    assert [running.post("/v1/jobs").status_code for _ in range(3)] == [202, 202, 429]
    refused = running.post()
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.headers["content-type"] == "application/problem+json"
    assert running.post("/v1/jobs", headers={"Idempotency-Key": "new"}).status_code == 429


def test_plan_runs_nothing(serve: Serve) -> None:
    running = serve()
    answer = running.post("/v1/plan", data={"prompt": "rain and blur"}).json()
    assert answer["plugins"] == ["derain", "deblur"]
    assert answer["memory_bytes"] > 0 and answer["seconds"] is None
    running.post()
    assert running.post("/v1/plan").json()["seconds"] > 0
    assert [file.name for file in (running.service.store.folder / "incoming").iterdir()] == []


@pytest.mark.parametrize("fields", [{"seed": "1"}, {"prompt": ""}, {"prompt": "auto"}, {"prompt": "fix this"}])
def test_without_words_the_photo_decides(serve: Serve, fields: dict[str, str]) -> None:
    running = serve()
    answer = running.post("/v1/plan", data=fields, photo=photo_bytes(darker=2)).json()
    assert answer["plugins"] == ["lowlight"] and answer["selection"]["reason"].startswith(
        "seen in the photo: lowlight 88%"
    )
    assert [one["task"] for one in answer["selection"]["findings"] if one["needed"]] == ["lowlight"]
    clean = photo_bytes()
    made = running.post(photo=clean, data=fields)
    assert made.status_code == 200 and made.content == clean, "nothing to restore: the very bytes"


def test_what_is_served_is_told(serve: Serve) -> None:
    running = serve()
    assert [one["id"] for one in running.get("/v1/plugins").json()["plugins"]] == list(PLUGINS)
    (bundle,) = running.get("/v1/bundles").json()["bundles"]
    assert (bundle["name"], bundle["engine"], bundle["understands_words"]) == ("fake", "fake", True)
    assert bundle["understands_photos"]
    assert running.get("/healthz").json()["status"] == "ok"
    schema = running.get("/openapi.json").json()
    assert {"/v1/restore", "/v1/jobs", "/v1/jobs/{job_id}/events", "/v1/images/edits", "/v1/plan"} <= set(
        schema["paths"]
    )
    assert "example" in json.dumps(schema["paths"]["/v1/jobs"]["post"])


def test_metrics_count_what_happened(serve: Serve) -> None:
    running = serve()
    running.post()
    running.post(photo=b"no photo")
    text = running.get("/metrics").text
    for line in (
        'diffplugin_requests_total{method="POST",route="/v1/restore",status="200"} 1.0',
        'diffplugin_requests_total{method="POST",route="/v1/restore",status="415"} 1.0',
        'diffplugin_jobs_total{state="done"} 1.0',
        'diffplugin_errors_total{kind="unsupported"} 1.0',
        'diffplugin_plugin_runs_total{plugin="derain"} 1.0',
        f"diffplugin_pixels_total {48.0 * 64}",
        "diffplugin_queue_jobs 0.0",
        "diffplugin_ready 1.0",
    ):
        assert line in text.splitlines(), line
    assert 'diffplugin_stage_seconds_total{stage="unet"}' in text and "process_resident_memory_bytes" in text


BAD_FIELDS = [
    ({"prompt": "?"}, "has no words"),
    ({"prompt": "x" * 5000}, "5000 characters"),
    ({"plugins": "nosuch"}, "nosuch"),
    ({"plugins": "deblur," * 20_000}, "20000 plugins are named, expected at most 32"),
    ({"prompt": "rain", "steps": "0"}, "steps is 0"),
    ({"prompt": "rain", "steps": "many"}, "steps is 'many'"),
    ({"prompt": "rain", "seed": "-1"}, "seed"),
    ({"prompt": "rain", "sampler": "magic"}, "magic"),
    ({"prompt": "rain", "size": "big"}, "size 'big'"),
    ({"prompt": "rain", "size": "99999x99999"}, "99999x99999"),
    ({"prompt": "rain", "tile": "-5"}, "tile '-5'"),
    ({"prompt": "rain", "tile": "3"}, "tile 3"),
    ({"prompt": "rain", "strength": "2"}, "strength is 2.0, expected auto or 0 to 1"),
    ({"prompt": "rain", "strength": "nan"}, "strength"),
    ({"prompt": "rain", "region": "1,2,3"}, "region '1,2,3'"),
    ({"prompt": "rain", "format": "exe"}, "format 'exe'"),
]


def test_bad_fields_are_named_with_the_remedy(serve: Serve) -> None:
    running = serve()
    for fields, expected in BAD_FIELDS:
        answer = running.post("/v1/jobs", data=fields)
        assert answer.status_code == 422, (fields, answer.status_code, answer.text)
        problem = answer.json()
        assert expected in problem["detail"] and "\n" not in problem["detail"], (fields, problem)
        assert answer.headers["content-type"] == "application/problem+json"
    assert running.post("/v1/jobs", data={"prompt": "rain", "bundle": "nosuch"}).status_code == 404
    assert running.get("/v1/jobs").json()["jobs"] == []


def test_faults_that_only_the_photo_shows_fail_the_job(serve: Serve) -> None:
    running = serve()
    answer = running.post(data={"plugins": "derain", "region": "500,500,10,10"})
    assert answer.status_code == 422 and "lies outside" in answer.json()["detail"]
    black = io.BytesIO()
    Image.new("L", (20, 20)).save(black, "PNG")
    answer = running.post(files={"mask": ("m.png", black.getvalue())})
    assert answer.status_code == 422 and "black everywhere" in answer.json()["detail"]
    answer = running.post(data={"plugins": "derain", "region": "0,0,9,9"}, files={"mask": ("m.png", black.getvalue())})
    assert answer.status_code == 422 and "expected one of them" in answer.json()["detail"]
    assert WAIT > 0
