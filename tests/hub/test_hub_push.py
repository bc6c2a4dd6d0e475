"""Uploads, against a server of our own that answers as the Hub's API does."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import saved_drafter
from typer.testing import CliRunner

from hf_failfast.cli.app import app
from hf_failfast.hub.export import export_hub


@pytest.fixture
def repository(tmp_path):
    export_hub(tmp_path / "repository", saved_drafter("canvas_shift", "llama"))
    for name in (".git/config", "data/questions.json", "model.safetensors.partial"):
        path = tmp_path / "repository" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("stays here")
    return tmp_path / "repository"


class FakeHub(BaseHTTPRequestHandler):
    """Remembers what it was asked, and takes every file within the commit itself."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        if self.server.refusal:
            return self.answer(self.server.refusal, {"error": "You shall not push"})
        if self.path == "/api/repos/create":
            return self.answer(200, {"url": f"{self.server.address}/user/name"})
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        return self.answer(
            200, {"commitUrl": f"{self.server.address}/user/name/commit/1", "commitOid": "1", "success": True}
        )

    def do_GET(self):
        self.answer(200, {"id": "user/name", "sha": "0" * 40, "siblings": []})

    def answer(self, status, content):
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.asked, server.refusal = [], None
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def push(hub, *arguments):
    """In a process of its own: huggingface_hub reads its endpoint when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_secret",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "hf_failfast.cli", "push", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def names_in(folder):
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in paths if not name.startswith((".git/", "data/")) and not name.endswith(".partial")}


def test_push_commits_the_files_and_prints_the_address(repository, hub):
    result = push(hub, "user/name", repository, "--private")
    assert result.returncode == 0, result.stderr
    assert result.stdout.rstrip().endswith(f"went to {hub.address}/user/name/commit/1")
    requests = {path: (token, body) for path, token, body in hub.asked}
    assert {token for token, _ in requests.values()} == {"Bearer hf_secret"}
    created = json.loads(requests["/api/repos/create"][1])
    assert created.get("visibility") == "private" or created.get("private") is True  # huggingface_hub 2 and 1
    lines = [json.loads(line) for line in requests["/api/models/user/name/commit/main"][1].splitlines()]
    files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
    assert set(files) == names_in(repository)
    for name, content in files.items():
        assert base64.b64decode(content) == (repository / name).read_bytes()


def test_a_refusal_of_the_hub_is_one_line(repository, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    hub.refusal = 403
    result = run("push", "user/name", repository)
    assert result.exit_code == 1
    assert "You shall not push" in result.stderr
    assert "Traceback" not in result.stderr


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_dry_run_lists_what_would_go(repository):
    result = run("push", "user/name", repository, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert set(document["files"]) == names_in(repository)
    assert document["files"]["config.json"] == (repository / "config.json").stat().st_size
    assert document["commit"] is None
    text = run("push", "user/name", repository, "--dry-run").stdout
    assert "custom_generate/generate.py" in text
    assert "would go to user/name" in text


def test_push_says_that_it_is_offline_and_what_to_set(repository, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run("push", "user/name", repository)
    assert result.exit_code == 1
    assert "offline" in result.stderr
    assert "HF_HUB_OFFLINE" in result.stderr


@pytest.mark.parametrize("files", [(), ("README.md",), ("config.json",)])
def test_a_folder_that_is_no_repository_is_refused(tmp_path, files):
    for name in files:
        (tmp_path / name).touch()
    result = run("push", "user/name", tmp_path, "--dry-run")
    assert result.exit_code == 1
    assert "is neither a drafter nor an exported repository" in result.stderr
