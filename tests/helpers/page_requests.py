"""The page's real server in a process of its own, and requests to it that no browser would send."""

import contextlib
import html
import http.client
import os
import pathlib
import subprocess
import sys
import time
import urllib.parse

import httpx
import pytest
from places import TESTS

import viavsp_jax
from tests.stress import visitors
from viavsp_jax.app.page import folder
from viavsp_jax.app.transcriber import Transcriber

# A short queue, and room for two uploads of unknown length. What is old is looked for at once. All this once the
# command has imported Gradio itself, which makes folders then.
LIMITS = """
from viavsp_jax.app import __main__ as app

def load_with_limits(args, load=app.load_transcriber):
    from viavsp_jax.app.page import gate, layout, server
    gate.MAX_KEPT = 500_000_000
    layout._MAX_WAITING, server._DELETE_EVERY = 3, 0.5
    return load(args)

app.load_transcriber = load_with_limits
"""
# Makes a folder as a page does, says which, and lives until it is told otherwise.
OWN = "from viavsp_jax.app.page.folder import own_folder as own\nwith own() as path: print(path, flush=True), input()"
FILE = {"meta": {"_type": "gradio.FileData"}}
CODE = pathlib.Path(viavsp_jax.__file__).parent


@pytest.fixture(scope="session")
def abandoned(tmp_path_factory):
    """What a page that was killed has left in the folder for temporary files of the one of the tests."""
    temporary = tmp_path_factory.mktemp("server")
    (temporary / "viavsp_page_others").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", OWN], env=os.environ | {"TMPDIR": str(temporary)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        left = pathlib.Path(process.stdout.readline().strip())
        folder.remove_abandoned(temporary)
        assert left.exists()  # it lives
        process.kill()
    assert left.exists() and left.parent == temporary
    return left


@pytest.fixture(scope="session")
def page(demo_export, abandoned):
    """One for all tests: to start it takes longer than they do."""
    with visitors.running(
        str(demo_export), abandoned.parent, "--device", "cpu", "--max_minutes", "1", before=LIMITS
    ) as page:
        yield page
    assert page.process.returncode == 0
    assert [path.name for path in abandoned.parent.iterdir()] == ["viavsp_page_others"], "something is left"


@pytest.fixture(scope="session")
def client(page):
    with httpx.Client(base_url=page.address, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def event(client):
    return visitors.event_of(client)


@pytest.fixture(scope="session")
def uploads(client):
    """The folder of the server where they lie."""
    return pathlib.Path(visitors.send(client, "a.txt", b"first").json()[0]).parents[1]


@pytest.fixture(scope="session")
def words(demo_export, demo_clips):
    """What is said in each clip, by its path."""
    transcriber = Transcriber.from_pretrained(demo_export, device="cpu")
    return {clip: transcriber(clip, num_beams=2).text for clip in demo_clips}


def raw(page, path, method="GET", headers=None):
    """Status and all that is answered to a path, which is sent as it is."""
    address = urllib.parse.urlsplit(page.address)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    connection._validate_path = lambda path: None  # a client that checks nothing
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, str(answer.headers) + answer.read().decode("utf-8", "replace")


def sent(client, name, content):
    """An upload as FileData."""
    answer = visitors.send(client, name, content)
    assert answer.status_code == 200, answer.text
    return {"path": answer.json()[0], **FILE}


def message(answer):
    """The sentence on the page, of a press that led to nothing else."""
    shown, results, alone, transcript, mouth, _, make, subtitled, *files = answer.values
    assert not any(one["visible"] for one in (results, alone, make, subtitled))
    assert transcript == "" and [mouth, *files] == [None] * (1 + len(files))
    return html.unescape(shown)


def assert_no_path(text, page, demo_export):
    """No path of the server but the names under which the visitor's own files are served."""
    for path in (demo_export, CODE.parent, pathlib.Path.home(), sys.prefix, TESTS):
        assert str(path) not in text
    assert "Traceback" not in text and "site-packages" not in text


def files(uploads):
    return {path for path in uploads.rglob("*") if path.is_file()}


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come true"
        time.sleep(0.05)
