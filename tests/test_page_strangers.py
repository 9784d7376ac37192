"""The page against strangers: the real server in a process of its own, and requests that no browser would send."""

import contextlib
import fractions
import html
import http.client
import http.server
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse

import av
import httpx
import numpy as np
import pytest

import viavsp_jax
from benchmarks import visitors
from viavsp_jax.app import folder
from viavsp_jax.app.transcriber import Transcriber

# A short queue, and room for two uploads of unknown length.
LIMITS = "from viavsp_jax.app import gate, page; gate.MAX_KEPT = 500_000_000; page._MAX_WAITING = 3"
FILE = {"meta": {"_type": "gradio.FileData"}}
CODE = pathlib.Path(viavsp_jax.__file__).parent


@pytest.fixture(scope="module")
def page(demo_export, tmp_path_factory):
    with visitors.running(
        str(demo_export), tmp_path_factory.mktemp("server"), "--device", "cpu", "--max_minutes", "1", before=LIMITS
    ) as page:
        yield page


@pytest.fixture(scope="module")
def client(page):
    with httpx.Client(base_url=page.address, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def event(client):
    return visitors.event_of(client)


@pytest.fixture(scope="module")
def uploads(client):
    """The folder of the server where they lie."""
    return pathlib.Path(visitors.send(client, "a.txt", b"first").json()[0]).parents[1]


@pytest.fixture(scope="module")
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
    shown, results, transcript, *files = answer.values
    assert results["visible"] is False and transcript == "" and files == [None] * len(files)
    return html.unescape(shown)


def assert_no_path(text, page, demo_export):
    """No path of the server but the names under which the visitor's own files are served."""
    for path in (demo_export, CODE.parent, pathlib.Path.home(), sys.prefix, pathlib.Path(__file__).parent):
        assert str(path) not in text
    assert "Traceback" not in text and "site-packages" not in text


def test_no_file_of_the_server_is_served(page, client, uploads, demo_export):
    path = visitors.send(client, "a.txt", b"mine").json()[0]
    assert raw(page, f"/gradio_api/file={path}")[1].endswith("mine")
    link = pathlib.Path(path).with_name("link.mp4")
    link.symlink_to("/etc/passwd")
    weights, up = demo_export / "projector.safetensors", "../" * 12
    inside = [uploads, uploads.parent, uploads.parent / "lock", pathlib.Path(path).parent, link]
    names = ["/etc/passwd", "/proc/self/environ", weights, demo_export, CODE / "app" / "page.py", "page.py", *inside]
    names += [f"{path}/../../../lock", f"{path}/{up}etc/passwd", f"{up}etc/passwd", f"/{up}etc/passwd", "//etc/passwd"]
    names += [f"{path}\0", f"{path}\n", f"file://{weights}", f"http://127.0.0.1:1{path}", "a" * 5000, "\\etc\\passwd"]
    for name in map(str, names):
        quoted = urllib.parse.quote(name, safe="")
        for form in (urllib.parse.quote(name), quoted, quoted.replace(".", "%2e"), urllib.parse.quote(quoted)):
            for route in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/gradio_api/file%3d"):
                status, text = raw(page, route + form)
                assert status == 404 and text.endswith("\n\nNot found.\n"), (route, form)


@pytest.mark.parametrize("root", ["assets", "static", "svelte"])
def test_parts_of_the_page_lead_nowhere_else(page, root):
    for up in ("../", "%2e%2e/", "..%2f", "%252e%252e/", "..\\", "..%5c"):
        for name in ("etc/passwd", "work/README.md", "__init__.py", "routes.py"):
            status, text = raw(page, f"/{root}/{up * 12 if 'etc' in name else up * 3}{name}")
            assert 400 <= status < 500 and "root:" not in text and "import" not in text


def test_nothing_else_is_answered(page):
    hidden = (
        "monitoring", "monitoring/summary", "logout", "gradio_api/proxy=http://a.hf.space/", "gradio_api/vibe-code",
        "gradio_api/deep_link?session_hash=a", "gradio_api/openapi.json", "gradio_api/custom_component/a/client/b/c",
        "gradio_api/stream/a/1/2/playlist.m3u8", "gradio_api/dev/reload", "gradio_api/call/transcribe/a",
        "gradio_api/runs", "gradio_api/token", "gradio_api/mcp", "docs", "openapi.json",
    )  # fmt: skip
    assert {path: raw(page, f"/{path}")[0] for path in hidden} == dict.fromkeys(hidden, 404)
    hidden = (
        "login", "gradio_api/run/event", "gradio_api/api/event", "gradio_api/call/event", "gradio_api/call/v2/event",
        "gradio_api/component_server", "gradio_api/process_recording", "gradio_api/stream/a", "gradio_api/vibe-edit",
        "gradio_api/undo-vibe-edit", "config", "gradio_api/upload/", "gradio_api/queue/join/",
    )  # fmt: skip
    assert {path: raw(page, f"/{path}", "POST")[0] for path in hidden} == dict.fromkeys(hidden, 404)
    assert {raw(page, "/config", method)[0] for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")} == {404}


def test_answers_name_no_path(page, client, event, demo_clips, words, demo_export):
    file = sent(client, "a.mov", demo_clips[0].read_bytes())
    answer = visitors.press(client, event, file)
    assert answer.text == words[demo_clips[0]]
    texts = [raw(page, path)[1] for path in ("/", "/config", "/gradio_api/info", "/theme.css", "/manifest.json")]
    assert all("200" in text or len(text) > 100 for text in texts)
    for text in (*texts, json.dumps(answer.values)):
        assert_no_path(text, page, demo_export)
    assert str(page.folder) not in "".join(texts)


@pytest.fixture
def listener():
    """An HTTP server, and what it has been asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_GET
        log_message = asked.append

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a.mp4", asked
        server.shutdown()


def test_only_an_upload_is_taken_for_a_file(page, client, event, listener, demo_export, uploads):
    address, asked = listener
    good = sent(client, "a.txt", b"mine")
    local = address.replace("127.0.0.1", "localhost")
    paths = [address, local, address.replace("http", "HTTP"), "https://example.com/a.mp4", "file:///etc/passwd", ""]
    paths += [
        "/etc/passwd",
        str(demo_export / "config.json"),
        str(uploads),
        f"{good['path']}/../a.txt",
        "a\0b",
        "x" * 999,
    ]
    values = [{"path": path, **FILE} for path in paths] + [{"path": path} for path in paths]
    values += [{"path": None}, {"url": address}, {}, [good], [[good]], {"path": [good["path"]], **FILE}]
    for value in values:
        answer = visitors.press(client, event, value)
        assert answer.refusal.startswith("422 "), value
        assert_no_path(answer.refusal, page, demo_export)
    # What Gradio does not look at does no harm either.
    answer = visitors.press(client, event, good | {"url": address, "orig_name": "/etc/passwd", "size": -1})
    assert "a.txt: not a media file" in message(answer)
    assert client.get("/gradio_api/file=" + address).status_code == 404
    assert asked == []


def test_requests_that_make_no_sense_end_in_a_sentence(page, client, event, demo_clips, words, demo_export):
    file = sent(client, "a.mov", demo_clips[0].read_bytes())

    def join(content, **headers):
        headers = {"Content-Type": "application/json"} | headers
        return client.post("/gradio_api/queue/join", content=content, headers=headers)

    def body(**changes):
        good = {"data": [file, None, *visitors.AUTOMATIC], "fn_index": event, "session_hash": "abc"}
        return json.dumps(good | changes)

    for content, status in (
        ("", 400), ("{", 400), ("[" * 30_000, 400), ('{"a":' * 9_000, 400), (b"\xff\xfe", 400), ("9" * 60_000, 400),
        (body(data=[file, None, "av", True, float("nan"), 2]), 400), (body(event_data=float("inf")), 400),
        ("[]", 422), ("null", 422), ("{}", 422), (body(data="x"), 422), (body(data={"a": 1}), 422),
        *((body(fn_index=number), 422) for number in (-1, 0, 1, 99, 2.5, "2", None, True, 10**30, [event])),
        (body(event_data="x" * 2**16), 413), (body(session_hash=["a"]), 422), (body(session_hash=None), 400),
    ):  # fmt: skip
        answer = join(content)
        assert answer.status_code == status, content[:80]
        assert_no_path(answer.text, page, demo_export)
    assert join(b" " * 2**14 for _ in range(9)).status_code == 413  # of a length that is not said
    for options in (
        ("automatic", False, 0, 10**9), ("automatic", False, 0, -1), ("automatic", False, 0, 0), ("smell", False, 0, 2),
        ("automatic", True, "inf", 2), ("automatic", True, 10**300, 2), ("av", True, None, None),
        (None, None, None, "x"), ("automatic",), (),
    ):  # fmt: skip
        answer = visitors.press(client, event, file, options)
        assert answer.values is None and answer.refusal.startswith('{"error"'), options
        assert_no_path(answer.refusal, page, demo_export)
    assert visitors.press(client, event, file).text == words[demo_clips[0]]


def test_another_site_cannot_start_work(page, client, event, demo_clips, words):
    file = sent(client, "a.mov", demo_clips[0].read_bytes())
    host = page.address.removeprefix("http://")
    for headers in (
        {"Origin": "http://example.com"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": ""},
        {"Origin": f"http://{host}.example.com"}, {"Origin": page.address, "Sec-Fetch-Site": "cross-site"},
        {"Origin": page.address, "Sec-Fetch-Site": "same-site"},
    ):  # fmt: skip
        for path in ("upload", "queue/join", "cancel"):
            assert client.post(f"/gradio_api/{path}", headers=headers, json={}).status_code == 403, headers
    with httpx.Client(base_url=page.address, headers={"Origin": page.address}, timeout=60) as same:
        assert visitors.press(same, event, file).text == words[demo_clips[0]]


def test_too_much_is_refused_while_it_arrives(page, client, uploads):
    def chunks(count):
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        for _ in range(count):
            yield bytes(2**20)
        yield b"\r\n--x--\r\n"

    def post(content, **headers):
        headers = {"Content-Type": "multipart/form-data; boundary=x"} | headers
        return client.post("/gradio_api/upload", content=content, headers=headers)

    before, memory = files(uploads), page.usage()["RSS MB"]
    assert post(chunks(230)).status_code == 413
    assert files(uploads) == before and page.usage()["RSS MB"] < memory + 100
    assert raw(page, "/gradio_api/upload", "POST", {"Content-Length": str(300 * 10**6)})[0] == 413
    # Nothing but one file, whatever else is in the form, which would be kept in memory.
    part = b'--x\r\nContent-Disposition: form-data; name="files"{}\r\n\r\nabc\r\n'
    named, field = part.replace(b"{}", b'; filename="a.mp4"'), part.replace(b"{}", b"")
    for content in (named + named, named + field, field, b"--x\r\n\r\nabc\r\n"):
        assert post(content + b"--x--\r\n").status_code == 400, content
    assert post(b"abc", **{"Content-Type": "text/plain"}).status_code == 400
    assert post(b"abc", **{"Content-Type": "multipart/form-data"}).status_code == 400
    assert files(uploads) == before


def files(uploads):
    return {path for path in uploads.rglob("*") if path.is_file()}


def test_room_for_uploads_is_limited_together(page, client, uploads):
    address, before = urllib.parse.urlsplit(page.address), files(uploads)
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    part = '--x\r\nContent-Disposition: form-data; name="files"; filename="slow.mp4"\r\n\r\n'
    with contextlib.ExitStack() as stack:
        for _ in range(2):  # of unknown length, each of which may become the largest
            slow = stack.enter_context(socket.create_connection((address.hostname, address.port)))
            slow.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{len(part):x}\r\n{part}\r\n".encode())
        wait_until(lambda: len(files(uploads)) == len(before) + 2)
        assert visitors.send(client, "a.mp4", b"small").status_code == 200
        answer = client.post("/gradio_api/upload", content=iter([b"x"]))
        assert answer.status_code == 503 and answer.text.startswith("There is no room for more files at the moment")
    before = {path for path in files(uploads) if path.suffix}
    wait_until(lambda: files(uploads) == before)  # what is broken off is removed
    large = uploads / "large"
    with large.open("wb") as file:
        file.truncate(500_000_000)
    assert visitors.send(client, "b.mp4", b"small").status_code == 503
    large.unlink()
    assert visitors.send(client, "b.mp4", b"small").status_code == 200


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come true"
        time.sleep(0.05)


def test_names_of_files_are_only_names(page, client, event, uploads):
    evil = "<img src=x onerror=alert(1)>.mp4"
    names = ["../../../etc/cron.d/a", "/etc/a.mp4", "..", ".", "...", "a\0b.mp4", "\u202egpm.exe", "n" * 10_000, " "]
    names += ["CON", ".hidden", "a\r\nX: y.mp4", "a;b|c`d`.mp4", "ă" * 300, "%2e%2e%2fa.mp4", "..\\..\\a.mp4", evil]
    for name in names:
        part = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\nno video\r\n--x--\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = client.post("/gradio_api/upload", content=part.encode(), headers=headers)
        assert answer.status_code in (200, 400, 413), name
        if answer.status_code == 200:
            path = pathlib.Path(answer.json()[0])
            assert path.parent.parent == uploads and path.is_file() and len(os.fsencode(path.name)) <= 255
            said = visitors.press(client, event, {"path": str(path), **FILE}).values[0]
            assert "not a media file" in said and said.count("<") == 2  # of the paragraph


def test_what_is_no_recording_is_refused_in_a_sentence(page, client, event, tmp_path):
    for name, content, sentence in (
        ("a.mp4", b"", "not a media file"), ("a.mp4", b"hello", "not a media file"),
        ("a.zip", b"PK\3\4" + bytes(99), "not a media file"), ("a.m3u8", b"#EXTM3U\n/etc/passwd\n", "not a media file"),
        ("a.html", b"<script>alert(1)</script>", "not a media file"), ("a.svg", b"<svg/>", "not a media file"),
        ("a.mp4", b"\x7fELF" + bytes(999), "not a media file"),
        ("a.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n", "not a media file"),
        ("a.sdp", b"v=0\nc=IN IP4 127.0.0.1\nm=video 1 RTP/AVP 96\n", "not a media file"),
        ("long.mp4", film(tmp_path / "long.mp4", 3 * 3600), "is longer than 1 minutes"),
        ("wide.avi", film(tmp_path / "wide.avi", 1).replace(pixels(64, 48), pixels(10**6, 10**6)), "wide.avi: "),
        ("gone.mp4", film(tmp_path / "gone.mp4", 1)[:300], "gone.mp4: "),
    ):  # fmt: skip
        said = message(visitors.press(client, event, sent(client, name, content)))
        assert f"{name}: " in said and sentence in said, said
        assert "went wrong" not in said and "/" not in said.replace("</p>", "").replace("video or audio", ""), said


def pixels(width, height):
    return struct.pack("<ii", width, height)


def film(path, seconds):
    """A file with two pictures so many seconds apart."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in (0, 25 * seconds):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
            frame.pts, frame.time_base = number, fractions.Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def test_what_was_sent_is_never_a_page(page, client):
    script = b"<script>alert(1)</script>"
    for name in ("a.html", "a.svg", "a.xhtml", "a.js", "a", "a.pdf", "a.mp4", "a.txt"):
        answer = client.get("/gradio_api/file=" + urllib.parse.quote(sent(client, name, script)["path"]))
        assert answer.content == script
        kind, disposition = answer.headers["content-type"], answer.headers["content-disposition"]
        assert disposition.startswith("attachment") == (name not in ("a.mp4", "a.txt"))
        assert kind.partition(";")[0] in ("application/octet-stream", "video/mp4", "text/plain")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
        for ranges in ("bytes=0-3", "bytes=9999999-", "bytes=0-1-2", "bytes=a-b", "lines=1-2"):
            assert "Traceback" not in raw(page, answer.url.raw_path.decode(), headers={"Range": ranges})[1]


def test_each_visitor_gets_his_own_and_some_are_asked_to_wait(page, demo_clips, words):
    before = page.usage()
    answers, _ = visitors.together(page, demo_clips, 8)
    for number, answer in enumerate(answers):
        if answer.values:
            assert answer.text == words[demo_clips[number % len(demo_clips)]]
        else:
            assert answer.refusal.startswith("503 ") and "Queue is full" in answer.refusal
    admitted = sum(answer.values is not None for answer in answers)
    assert 4 <= admitted < 8 and len(set(words.values())) > 1
    answers, peak = visitors.together(page, demo_clips, 4)
    assert [answer.text for answer in answers] == list(words.values())
    assert peak["RSS MB"] < before["RSS MB"] + 200
    wait_until(lambda: page.usage()["open"] <= before["open"] + 3)


def test_what_a_killed_page_left_is_removed_and_uploads_in_time(demo_export, tmp_path):
    (tmp_path / "viavsp_page_others").mkdir()
    own = "from viavsp_jax.app.folder import own_folder as own\nwith own() as path: print(path, flush=True), input()"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", own], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        left = pathlib.Path(process.stdout.readline().strip())
        folder.remove_abandoned(tmp_path)
        assert left.exists()  # it lives
        process.kill()
    assert left.exists()
    soon = "from viavsp_jax.app import page; page._DELETE_EVERY = page._DELETE_AFTER = 1"
    with visitors.running(str(demo_export), tmp_path, "--device", "cpu", before=soon) as page:
        assert not left.exists()
        with httpx.Client(base_url=page.address) as client:
            path = pathlib.Path(visitors.send(client, "a.mp4", b"anything").json()[0])
        wait_until(lambda: not path.parent.exists())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("viavsp")] == ["viavsp_page_others"]


def test_nothing_but_what_is_old_or_abandoned_is_removed(tmp_path):
    with folder.own_folder() as alive:
        (alive / "a").mkdir()
        (alive / "a" / "old").write_bytes(bytes(100_000))
        (alive / "a" / "new").write_bytes(b"1")
        os.utime(alive / "a" / "old", (0, 0))
        assert folder.size(alive) == 100_000 + 2**16 + 2**16  # the last is the lock
        folder.delete_old(alive, 60)
        assert [path.name for path in (alive / "a").iterdir()] == ["new"]
        link = tmp_path / "viavsp_page_link"
        link.symlink_to(alive)
        folder.remove_abandoned(tmp_path)
        folder.remove_abandoned(alive.parent)
        assert alive.exists() and link.is_symlink()
    assert not alive.exists()
