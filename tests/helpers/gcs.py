"""A server that answers as Google Cloud Storage does, for tests without one: the JSON API that is documented at
https://cloud.google.com/storage/docs/json_api, as far as our libraries ask, with generations and what depends on them.

A bucket is there if it is named when the server starts; in the one named `closed`, nobody has any rights. What it does
not know it answers with status 501.
"""

import base64
import contextlib
import email
import email.policy
import hashlib
import http.server
import itertools
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import google_crc32c

# The variables by which the libraries that open gs:// paths (viavsp_jax/runtime/buckets.py) find it.
ADDRESSES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
# Else they look for an account, which takes them a while.
NO_ACCOUNT = {"NO_GCE_CHECK": "true", "GOOGLE_CLOUD_PROJECT": "test"} | dict.fromkeys(
    ("GCE_METADATA_HOST", "GCE_METADATA_IP"), "127.0.0.1:1"
)
CLOSED, REFUSAL = "closed", "tpu@test.iam.gserviceaccount.com does not have storage.objects.get access"
PAGE = 20  # names in one answer, of which Google's server gives 1,000


class Answer(Exception):
    """What a request ends with: status, content and headers."""

    def __init__(self, status: int, content: bytes | dict[str, Any] = b"", headers: dict[str, Any] | None = None):
        self.status, self.headers = status, headers or {}
        self.content = content if isinstance(content, bytes) else json.dumps(content).encode()


def refusal(status: int, message: str) -> Answer:
    return Answer(status, {"error": {"code": status, "message": message, "errors": [{"message": message}]}})


class Store:
    """Objects by bucket and name: their content and what is known of them."""

    def __init__(self, buckets: tuple[str, ...]):
        self.buckets: dict[str, dict[str, tuple[bytes, dict[str, str]]]] = {name: {} for name in buckets}
        self.lock, self.uploads = threading.RLock(), {}
        self._generations = itertools.count(1_700_000_000_000_000)

    def bucket(self, name: str) -> dict[str, tuple[bytes, dict[str, str]]]:
        if name == CLOSED:
            raise refusal(403, REFUSAL)
        if name not in self.buckets:
            raise refusal(404, "The specified bucket does not exist.")
        return self.buckets[name]

    def check(self, bucket: str, name: str, query: dict[str, str]) -> None:
        """Preconditions; generation 0 is that of an object that is not there."""
        there = self.bucket(bucket).get(name)
        now = int(there[1]["generation"]) if there else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != now:
            raise refusal(412, "At least one of the pre-conditions you specified did not hold.")
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == now:
            raise Answer(304)

    def read(self, bucket: str, name: str, query: dict[str, str]) -> tuple[bytes, dict[str, str]]:
        self.check(bucket, name, query)
        there = self.bucket(bucket).get(name)
        if there is None or query.get("generation", there[1]["generation"]) != there[1]["generation"]:
            raise refusal(404, f"No such object: {bucket}/{name}")
        return there

    def write(self, bucket: str, name: str, content: bytes, query: dict[str, str], kind: str) -> dict[str, str]:
        with self.lock:
            self.check(bucket, name, query)
            generation = str(next(self._generations))
            known = {
                "kind": "storage#object", "id": f"{bucket}/{name}/{generation}", "name": name, "bucket": bucket,
                "generation": generation, "metageneration": "1", "size": str(len(content)), "contentType": kind,
                "crc32c": base64.b64encode(google_crc32c.Checksum(content).digest()).decode(),
                "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(), "etag": generation,
                "timeCreated": "2026-01-01T00:00:00.000Z", "updated": "2026-01-01T00:00:00.000Z",
                "storageClass": "STANDARD",
            }  # fmt: skip
            self.bucket(bucket)[name] = content, known
            return known

    def delete(self, bucket: str, name: str, query: dict[str, str]) -> None:
        with self.lock:
            self.read(bucket, name, query)
            del self.bucket(bucket)[name]

    def list(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        found: dict[str, dict[str, str] | None] = {}  # by name, or None for a folder
        with self.lock:
            for name, (_, known) in self.bucket(bucket).items():
                if name.startswith(prefix) and start <= name and (not end or name < end):
                    head, cut, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else (name, "", "")
                    found[prefix + head + cut if cut else name] = None if cut else known
        after = base64.b64decode(query.get("pageToken", "")).decode()
        names = [name for name in sorted(found) if name > after]
        page = names[: min(PAGE, int(query.get("maxResults", PAGE)))]
        items = [found[name] for name in page if found[name]]
        answer: dict[str, Any] = {"kind": "storage#objects", "items": items}
        answer["prefixes"] = [name for name in page if not found[name]]
        if len(page) < len(names):
            answer["nextPageToken"] = base64.b64encode(page[-1].encode()).decode()
        return answer


class Requests(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    store: Store

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            body = self.rfile.read(length)
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        try:
            self.answer(url.path, query, body)
        except Answer as answer:
            headers = {"Content-Type": "application/json"} | answer.headers
            bodiless = answer.status in (204, 304)
            if not bodiless:
                headers["Content-Length"] = len(answer.content)
            head = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {value}" for name, value in headers.items())]
            # At once: else the second part would wait until the first is acknowledged.
            self.wfile.write("\r\n".join([*head, "", ""]).encode() + (b"" if bodiless else answer.content))

    do_GET = do_POST = do_PUT = do_DELETE = handle_request

    def answer(self, path: str, query: dict[str, str], body: bytes) -> None:
        """Raises the Answer."""
        if match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            self.upload(urllib.parse.unquote(match[1]), query, body)
        match = re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)(?:/o(?:/([^/]+))?)?", path)
        if not match:
            raise refusal(501, f"{self.command} {self.path}")
        bucket, name = urllib.parse.unquote(match[1]), match[2] and urllib.parse.unquote(match[2])
        if self.command == "GET" and name:
            content, known = self.store.read(bucket, name, query)
            raise self.content(content, known) if query.get("alt") == "media" else Answer(200, known)
        if self.command == "DELETE" and name:
            self.store.delete(bucket, name, query)
            raise Answer(204)
        if self.command == "GET":
            self.store.bucket(bucket)
            whole = {"kind": "storage#bucket", "name": bucket, "id": bucket}
            raise Answer(200, self.store.list(bucket, query) if path.endswith("/o") else whole)
        raise refusal(501, f"{self.command} {self.path}")

    def content(self, content: bytes, known: dict[str, str]) -> Answer:
        headers: dict[str, Any] = {
            "Content-Type": known["contentType"], "ETag": known["etag"], "X-Goog-Generation": known["generation"],
            "X-Goog-Metageneration": known["metageneration"], "X-Goog-Stored-Content-Length": len(content),
            "X-Goog-Hash": f"crc32c={known['crc32c']},md5={known['md5Hash']}", "Accept-Ranges": "bytes",
        }  # fmt: skip
        if not (match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))):
            return Answer(200, content, headers)
        size = len(content)
        first = int(match[1]) if match[1] else max(0, size - int(match[2]))
        last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
        if first >= size:
            return refusal(416, "The requested range cannot be satisfied.")
        return Answer(206, content[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{size}"})

    def upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        """The three ways to do it: the content alone, with what is said of it, or in parts."""
        kind = self.headers.get("Content-Type", "application/octet-stream")
        if query.get("uploadType") == "media":
            raise Answer(200, self.store.write(bucket, query["name"], body, query, kind))
        if query.get("uploadType") == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', kind)[1].encode()
            _, said, part = re.split(rb"(?:^|\r?\n)--" + re.escape(boundary), body)[:3]
            said = email.message_from_bytes(said.strip(), policy=email.policy.HTTP).get_payload()
            said = json.loads(said)
            head, content = re.split(rb"\r?\n\r?\n", part.removeprefix(b"\r\n").removeprefix(b"\n"), maxsplit=1)
            kind = re.search(rb"(?i)content-type:\s*([^\r\n]+)", head)[1].decode()
            raise Answer(200, self.store.write(bucket, said["name"], content, query, kind))
        if query.get("uploadType") == "resumable" and "upload_id" not in query:
            self.store.bucket(bucket)
            name = query.get("name") or json.loads(body)["name"]
            number = str(len(self.store.uploads))
            self.store.uploads[number] = name, query, bytearray()
            address = f"http://{self.headers['Host']}/upload/storage/v1/b/{urllib.parse.quote(bucket, '')}/o"
            raise Answer(200, b"", {"Location": f"{address}?uploadType=resumable&upload_id={number}"})
        if query.get("uploadType") == "resumable":
            name, begun, held = self.store.uploads[query["upload_id"]]
            match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers["Content-Range"])
            assert not match[1] or int(match[1]) == len(held)
            held += body
            if match[2] == "*" or int(match[2]) > len(held):
                raise Answer(308, b"", {"Range": f"bytes=0-{len(held) - 1}"} if held else {})
            raise Answer(200, self.store.write(bucket, name, bytes(held), begun, "application/octet-stream"))
        raise refusal(501, f"{self.command} {self.path}")

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class Server(http.server.ThreadingHTTPServer):
    """Many connections, which their clients may break off."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def environment(address: str) -> dict[str, str]:
    """What a process needs to take the server there for Google's."""
    return dict.fromkeys(ADDRESSES, address) | NO_ACCOUNT


@contextlib.contextmanager
def serving(*buckets: str) -> Iterator[str]:
    """The address of a server with these buckets, in its memory."""
    handler = type("Handler", (Requests,), {"store": Store(buckets)})
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
