"""A stand-in for the Hugging Face hub on this machine: what its client asks for when it loads and pushes a model."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        repositories: name -> branch -> path -> contents.
        asked: every request's method and path.
        token: what a push must send.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.asked: list[str] = []
        self.token = "hf_standin"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repository: str, revision: str) -> str:
        """Hash of a branch as it is; "" if there is none."""
        for branch, files in self.repositories.get(repository, {}).items():
            names = "".join(f"{name} {len(data)}" for name, data in sorted(files.items()))
            digest = hashlib.sha1(f"{branch} {names}".encode()).hexdigest()
            if revision in (branch, digest):
                return digest
        return ""

    def files(self, repository: str, revision: str) -> dict[str, bytes]:
        branches = self.repositories.get(repository, {})
        return next(
            files
            for name, files in branches.items()
            if self.commit(repository, name) == self.commit(repository, revision)
        )


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _missing(self, what: str) -> None:
        self._json(
            {"error": f"{what} not found"}, 404, X_Error_Code=f"{what}NotFound", X_Error_Message=f"{what} not found"
        )

    def do_GET(self) -> None:  # noqa: PLR0911
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+?))?/?", path):
            repository, kind, revision = found[1], found[2], found[3] or "main"
            if repository not in self.server.repositories:
                return self._missing("Repo")
            if not (commit := self.server.commit(repository, revision)):
                return self._missing("Revision")
            files = self.server.files(repository, revision)
            if kind == "tree":
                return self._json([self._entry(name, data) for name, data in files.items()])
            siblings = [{"rfilename": name} for name in files]
            return self._json(
                {
                    "id": repository,
                    "modelId": repository,
                    "sha": commit,
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                }
            )
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            commit = self.server.commit(found[1], found[2])
            data = self.server.files(found[1], found[2]).get(found[3]) if commit else None
            if data is None:
                return self._missing("Entry")
            etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            return self._send(200, data, ETag=f'"{etag}"', X_Repo_Commit=commit, Accept_Ranges="bytes")
        return self._missing("Repo")

    do_HEAD = do_GET  # noqa: N815

    @staticmethod
    def _entry(name: str, data: bytes) -> dict[str, Any]:
        return {
            "type": "file",
            "path": name,
            "size": len(data),
            "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
        }

    def do_POST(self) -> None:  # noqa: PLR0911
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._json({"error": "Invalid credentials"}, 401)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.repositories.setdefault(repository, {"main": {}})
            return self._json({"url": f"{self.server.url}/{repository}"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            self.server.repositories[found[1]].setdefault(found[2], {})
            return self._json({})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            return self._json(
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            files = self.server.repositories[found[1]][found[2]]
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            commit = self.server.commit(found[1], found[2])
            return self._json(
                {"commitUrl": f"{self.server.url}/{found[1]}/commit/{commit}", "commitOid": commit, "success": True}
            )
        return self._missing("Repo")


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
