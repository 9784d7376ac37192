"""The page against requests that no browser would send, and many visitors at once."""

import http.client
import http.server
import json
import pathlib
import threading
import urllib.parse

import httpx
import pytest
from page_requests import CODE, FILE, assert_no_path, message, raw, sent, wait_until

from tests.stress import visitors


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


def test_other_presses_give_what_is_the_visitors_own(client, uploads):
    events = visitors.events(client)
    assert events.keys() == {"example", "transcribe", "make"}

    def ask(name, *data):
        session = f"{name}{len(data)}"
        body = {"data": data, "fn_index": events[name], "session_hash": session}
        client.post("/gradio_api/queue/join", json=body).raise_for_status()
        return visitors.listen(client, session)

    for kept in (None, "/etc/passwd", 7):  # it is the server that keeps what was transcribed
        shown, make, subtitled = ask("make", kept).values
        assert "no longer here" in shown and not make["visible"] and not subtitled["visible"]
    video, sound = ask("example").values
    assert sound is None and pathlib.Path(video["path"]).parent.parent == uploads
    answer = ask("example", "/etc/passwd")
    assert answer.values is None or answer.values[0]["path"] == video["path"]


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


def test_each_visitor_gets_his_own_and_some_are_asked_to_wait(page, demo_clips, words):
    before = page.usage()
    answers, _ = visitors.together(page, demo_clips, 8)
    for number, answer in enumerate(answers):
        if answer.values:
            assert answer.text == words[demo_clips[number % len(demo_clips)]]
        else:
            assert answer.refusal == '429 {"detail":"The page is busy, please try again in a minute."}'
    admitted = sum(answer.values is not None for answer in answers)
    assert 4 <= admitted < 8 and len(set(words.values())) > 1
    answers, peak = visitors.together(page, demo_clips, 4)
    assert [answer.text for answer in answers] == list(words.values())
    assert peak["RSS MB"] < before["RSS MB"] + 200
    wait_until(lambda: page.usage()["open"] <= before["open"] + 3)
