"""Container and cluster files: the image's contents are built and served from, manifests fit Kubernetes' schema."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
MANIFESTS = sorted((ROOT / "deploy").glob("*.yaml"))


def documents(file: Path) -> list[Any]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    return [document for document in yaml.safe_load_all(file.read_text(encoding="utf-8")) if document]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_manifests_fit_kubernetes_schema(file: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    found = documents(file)
    assert {"Service", "HorizontalPodAutoscaler"} <= {one["kind"] for one in found}
    for document in found:
        validate.validate(document, validate.latest_version(), strict=True)
    broken = documents(file)[0]
    broken["spec"]["replicas"] = "many"
    with pytest.raises(validate.ValidationError):
        validate.validate(broken, validate.latest_version(), strict=True)


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_manifests_name_what_the_server_has(file: Path) -> None:
    """Options, paths and the metric in the manifests are the server's own."""
    pytest.importorskip("fastapi", reason="needs the extra [serve]")
    from diffplugin.runtime.serve.main import build_parser
    from diffplugin.runtime.serve.metrics import Metrics

    by_kind = {one["kind"]: one for one in documents(file)}
    pods = next(by_kind[kind] for kind in ("Deployment", "StatefulSet") if kind in by_kind)
    (container,) = pods["spec"]["template"]["spec"]["containers"]
    args = build_parser().parse_args(["--state", "/state", *container["args"]])
    assert args.grace < pods["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")} == {
        "/healthz",
        "/readyz",
    }
    (metric,) = by_kind["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"].encode() in Metrics().text()
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]


def test_the_dockerfile_and_compose_agree_with_the_server() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^USER 10001", text, re.M) and "HEALTHCHECK" in text
    for path in re.findall(r"/src/(\S+\.sh)", text):
        assert (ROOT / path).is_file()
    (service,) = documents(ROOT / "compose.yaml")[0]["services"].values()
    assert service["read_only"] and "/tmp" in service["tmpfs"]


@pytest.mark.slow
def test_the_images_contents_are_small_and_serve_read_only(tmp_path: Path) -> None:
    """The very script of the Dockerfile, in a fresh folder that is then write-protected; the server runs from it."""
    source, root, state = tmp_path / "src", tmp_path / "root", tmp_path / "state"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv*", "tests", "__pycache__", "results"))
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable} | {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or name.endswith(("_proxy", "_PROXY"))
    }
    script = ["sh", str(source / "deploy" / "build-root.sh"), str(source), str(root), "serve"]
    built = subprocess.run(script, capture_output=True, text=True, env=environment, check=False)
    assert built.returncode == 0, built.stderr
    megabytes = int(built.stdout.split()[-1])
    print(f"\n{megabytes} MB beside the base system and Python")
    assert megabytes < 330, "with Debian's slim image and Python (about 110 MB) under 450 MB"
    shutil.rmtree(source)
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    state.mkdir()
    environment |= {
        "TMPDIR": str(state),
        "HOME": "/nonexistent",
        "DIFFPLUGIN_CACHE": str(state / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    command = [str(root / "bin" / "dp-serve"), "--port", "0", "--state", str(state / "serve")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd="/") as server:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None
        health = [str(root / "bin" / "python"), "-m", "diffplugin.runtime.serve.health", f"{found[0]}/readyz"]
        began = time.monotonic()
        while subprocess.run(health, env=environment, check=False).returncode:
            assert time.monotonic() - began < 60
            time.sleep(0.2)
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert subprocess.run(health, env=environment, check=False).returncode == 1
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert after == before, "nothing was written into the image"
