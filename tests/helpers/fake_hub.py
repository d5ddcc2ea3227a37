"""A Hugging Face Hub on this machine, as far as reading and uploading models needs one: real requests, real refusals, no network."""

import base64
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_of_the_fake_hub"
OID = "0" * 40
# What the hub answers, by a model's owner: status and X-Error-Code, without and with a token.
REFUSALS = {
    "gated": ((401, "GatedRepo"), None),
    "forbidden": ((401, "GatedRepo"), (403, "GatedRepo")),
    "missing": ((401, "RepoNotFound"), (404, "RepoNotFound")),
}


@dataclass
class FakeHub:
    """Its address and the folder of its models, by owner/name; `requests`: what was asked of it."""

    address: str
    models: Path
    requests: list[str] = field(default_factory=list)

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """What a process needs to take this for the hub, with its cache in `home`."""
        known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return known | own | ({"HF_TOKEN": token} if token else {})


def handler_of(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"X-Repo-Commit": OID, "Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def say(self, content: object, status: int = 200) -> None:
            self.answer(status, json.dumps(content).encode(), Content_Type="application/json")

        def known(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            parts = self.path.split("?")[0].strip("/").removeprefix("api/models/").split("/")
            if not self.known() and "Authorization" in self.headers:
                self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
                return
            refusal = REFUSALS.get(parts[0], (None, None))[self.known()]
            if refusal:
                self.answer(refusal[0], X_Error_Code=refusal[1], X_Error_Message=refusal[1])
                return
            if len(parts) > 4 and parts[3] not in ("main", OID):
                self.answer(404, X_Error_Code="RevisionNotFound")
                return
            file = hub.models.joinpath(*parts[:2], *parts[4:])
            if len(parts) > 4 and parts[2] == "resolve" and file.is_file():
                content = file.read_bytes()
                self.answer(200, content, ETag=f'"{hash(content)}"')
            elif len(parts) > 4:
                self.answer(404, X_Error_Code="EntryNotFound")
            else:
                self.answer(404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not self.known():
                self.answer(401)
            elif self.path == "/api/validate-yaml":
                self.say({"errors": [], "warnings": []})
            elif self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization', 'me')}/{asked['name']}"
                (hub.models / name).mkdir(parents=True, exist_ok=True)
                self.say({"url": f"{hub.address}/{name}", "id": name})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                self.say({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
            elif "/commit/" in self.path:
                owner, name = self.path.removeprefix("/api/models/").split("/")[:2]
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        place = hub.models / owner / name / line["value"]["path"]
                        place.parent.mkdir(parents=True, exist_ok=True)
                        place.write_bytes(base64.b64decode(line["value"]["content"]))
                self.say({"commitUrl": f"{hub.address}/{owner}/{name}/commit/{OID}", "commitOid": OID})
            else:
                self.answer(404)

    return Handler


@contextmanager
def fake_hub(folder: Path) -> Iterator[FakeHub]:
    """While it is open, a hub serves the models in `folder` and takes new ones."""
    hub = FakeHub("", folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
