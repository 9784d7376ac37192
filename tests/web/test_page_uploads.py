"""What strangers send to the page: too much, under hostile names, with hostile contents; and what becomes of it."""

import contextlib
import fractions
import os
import pathlib
import socket
import struct
import urllib.parse

import av
import numpy as np
from page_requests import FILE, files, message, raw, sent, wait_until

from tests.stress import visitors
from viavsp_jax.app.page import folder


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


def test_what_a_killed_page_left_is_removed_and_uploads_in_time(page, client, abandoned):
    assert not abandoned.exists() and (page.folder / "viavsp_page_others").exists()
    old, new = (pathlib.Path(sent(client, "a.mp4", content)["path"]) for content in (b"old", b"new"))
    os.utime(old, (0, 0))
    wait_until(lambda: not old.exists())
    os.utime(old.parent, (0, 0))  # it has changed just now
    wait_until(lambda: not old.parent.exists())
    assert new.exists()


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
