"""A model hub on loopback, as far as huggingface_hub asks one: repositories in memory, commits, large files.

Its answers are those that the public hub documents for its API. Knows HTTP. Does not know what a bundle is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories by name: branches by name, each a commit, which is files by path."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def commit(self, repository: str, branch: str, changes: dict[str, bytes]) -> str:
        """A new commit on a branch; its id."""
        branches = self.repositories[repository]
        files = {**self.commits.get(branches.get(branch, ""), {}), **changes}
        text = json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in files.items()})
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid], branches[branch] = files, oid
        return oid


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """Information on a repository, its tree, and files."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """What a file is."""
        self._answer(with_body=False)

    def do_PUT(self) -> None:
        """A large file."""
        data = self._body()
        self.hub.large[hashlib.sha256(data).hexdigest()] = data
        self._send(200, b"")

    def do_POST(self) -> None:
        """Repositories, branches, uploads, commits."""
        parts = self._parts()
        body = self._body()
        if parts == ["api", "repos", "create"]:
            name = "/".join(filter(None, (json.loads(body).get("organization"), json.loads(body)["name"])))
            if name in self.hub.repositories:
                return self._json({"url": f"{self.hub.url}/{name}"}, 409)
            self.hub.repositories[name] = {}
            self.hub.commit(name, "main", {})
            return self._json({"url": f"{self.hub.url}/{name}"})
        if parts == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if parts[-2:] == ["objects", "batch"]:
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/upload/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        name, what, branch = "/".join(parts[2:4]), parts[4], parts[5]
        if name not in self.hub.repositories:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        branches = self.hub.repositories[name]
        if what == "branch":
            if branch in branches:
                return self._send(409, b"{}")
            branches[branch] = branches["main"]
            return self._json({})
        if what == "preupload":
            files = [
                {"path": each["path"], "uploadMode": "lfs" if each["size"] > 4096 else "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        changes = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.hub.large[value["oid"]]
        oid = self.hub.commit(name, branch, changes)
        return self._json({"commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "success": True})

    def _answer(self, with_body: bool) -> None:
        parts = self._parts()
        if parts[:2] == ["api", "models"]:
            name, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
        else:
            name, revision = "/".join(parts[:2]), parts[3] if len(parts) > 3 else "main"
        branches = self.hub.repositories.get(name)
        if branches is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        oid = branches.get(revision, revision)
        files = self.hub.commits.get(oid)
        if files is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if parts[0] == "api" and len(parts) > 4 and parts[4] == "tree":
            return self._json([{"type": "file", "path": p, "size": len(d), "oid": _etag(d)} for p, d in files.items()])
        if parts[0] == "api":
            siblings = [{"rfilename": path} for path in files]
            return self._json(
                {"id": name, "sha": oid, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            )
        data = files.get("/".join(parts[4:]))
        if data is None:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        return self._send(200, data, headers, with_body=with_body)

    def _parts(self) -> list[str]:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        return [unquote(part) for part in path.strip("/").split("/")]

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _json(self, document: object, status: int = 200) -> None:
        self._send(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
