"""What strangers may ask of the page. All requests pass here before Gradio sees them.

Gradio serves more than this page needs: it fetches addresses that a request names as files, stores links, runs parts of
components. Here only what the page itself asks for is let through, from the page itself; files are those that visitors
sent or got; and no request is larger, and all that is kept is not more, than is said below.
"""

import asyncio
import json
import pathlib
import re
import shutil
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from viavsp_jax.app.page import folder as kept
from viavsp_jax.app.page import language

MAX_FILE_SIZE = 200 * 10**6  # bytes
MAX_KEPT = 10 * 10**9  # bytes of all visitors together
_MAX_FRAME = 2**16  # bytes of an upload around the file itself
_MAX_JSON = 2**16  # bytes of any other request
_PATIENCE = 30  # seconds in which an upload must go on
_UPLOAD, _JOIN = "/gradio_api/upload", "/gradio_api/queue/join"
_FILE = "/gradio_api/file="
_GET = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/pwa_icon(/\w+)?|/robots\.txt|/(assets|static|svelte)/.+"
    r"|/gradio_api/(info|startup-events|app_id|theme\.css|heartbeat/\w+|queue/data|upload_progress|file=.+)"
)
_POST = (_UPLOAD, _JOIN, "/gradio_api/cancel", "/gradio_api/reset")
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}


class _Refused(Exception):
    """A request that goes no further; the message is for the visitor."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, folder: pathlib.Path, uploads: pathlib.Path, events: set[int]):
        """Args:
        app: what answers the requests that are let through.
        folder: all that is kept lies in it.
        uploads: the folder in it where Gradio puts files, each in a folder of its own.
        events: numbers of the functions that a visitor may call.
        """
        self._app, self._folder, self._uploads, self._events = app, folder, uploads, events
        self._arriving = 0  # bytes of uploads under way, as large as they may become

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        send = _with_headers(send, path)
        try:
            self._check(request, path)
            if path == _UPLOAD:
                await self._take_upload(request, send)
                return
            if request.method == "POST":
                receive = await self._checked_body(request, path)
        except _Refused as error:
            await _refusal(error, request, path)(scope, receive, send)
            return
        if path == _JOIN:
            send = _told_if_full(request, receive, send)
        await self._app(scope, receive, send)

    def _check(self, request: Request, path: str) -> None:
        """Raises _Refused for what the page does not ask for."""
        if request.method in ("GET", "HEAD"):
            if not _GET.fullmatch(path) or path.startswith(_FILE) and not self._holds(path.removeprefix(_FILE)):
                raise _Refused(404, "Not found.")
        elif request.method != "POST" or path not in _POST:
            raise _Refused(404, "Not found.")
        elif not _from_the_page(request):
            raise _Refused(403, "Only the page itself may ask for this.")

    def _holds(self, name: str) -> bool:
        """Whether that is a file of a visitor."""
        path = pathlib.Path(name)
        try:
            return path.parent.parent == self._uploads and path.is_file() and path.resolve() == path
        except (OSError, ValueError):  # no name that a file can have
            return False

    async def _take_upload(self, request: Request, send: Send) -> None:
        """Passes one file on as it arrives, if there is room. Raises _Refused if there is not."""
        try:
            largest = int(request.headers.get("content-length", MAX_FILE_SIZE + _MAX_FRAME))
        except ValueError as error:
            raise _Refused(400, "The length of the upload is no number.") from error
        if largest > MAX_FILE_SIZE + _MAX_FRAME:
            raise _Refused(413, f"The file is too large, expected at most {MAX_FILE_SIZE // 10**6} MB.")
        self._arriving += largest
        try:
            taken = await anyio.to_thread.run_sync(kept.size, self._folder)
            free = shutil.disk_usage(self._folder).free
            if self._arriving > min(MAX_KEPT - taken, free):
                raise _Refused(503, "There is no room for more files at the moment, please try again later.")
            await self._app(request.scope, _watched(request, largest), send)
        finally:
            self._arriving -= largest

    async def _checked_body(self, request: Request, path: str) -> Receive:
        """Reads a request of JSON; gives what gives it once more. Raises _Refused if it is not one of the page's."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_JSON:
                raise _Refused(413, "The request is too large.")
        try:
            content = json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise _Refused(400, "The request is not JSON.") from error
        if path == _JOIN:
            self._check_event(content)
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await request.receive()

        return replay

    def _check_event(self, content: Any) -> None:
        """Raises _Refused unless it calls one of the functions, with plain values and files of visitors."""
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            raise _Refused(422, "The request has no list of values.")
        if type(content.get("fn_index")) is not int or content["fn_index"] not in self._events:
            raise _Refused(422, "The request asks for what the page does not do.")
        for value in content["data"]:
            if isinstance(value, dict) and not (isinstance(value.get("path"), str) and self._holds(value["path"])):
                raise _Refused(422, "The file is no longer here, please send it once more.")
            if isinstance(value, list):
                raise _Refused(422, "The request has a list where one value is expected.")


def _refusal(error: _Refused, request: Request, path: str) -> Response:
    """The answer to a request that goes no further, in the visitor's language."""
    spoken = language.of(request)
    sentence = language.told(str(error), spoken, "This cannot be asked for.")
    response = JSONResponse({"detail": sentence}) if path == _JOIN else PlainTextResponse(f"{sentence}\n")
    response.status_code = error.status
    return response


def _told_if_full(request: Request, receive: Receive, send: Send) -> Send:
    """Puts a sentence of ours in place of the answer that the queue is full, for which the browser has English only."""
    full = False

    async def sent(message: Message) -> None:
        nonlocal full
        if message["type"] == "http.response.start" and message["status"] == 503:
            full = True
            busy = _Refused(429, "The page is busy, please try again in a minute.")
            await _refusal(busy, request, _JOIN)(request.scope, receive, send)
        elif not full:
            await send(message)

    return sent


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _from_the_page(request: Request) -> bool:
    """Whether the page of this server asks, as far as a browser says who does; what is no browser may ask."""
    site = request.headers.get("sec-fetch-site")  # which no script can set; browsers leave it out without TLS
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("host")


def _watched(request: Request, largest: int) -> Receive:
    """Gives an upload as it arrives.

    Ends it by the exception on which Gradio removes what has arrived, if it grows too large, stands still, is broken
    off, or holds anything but one file. (Gradio would keep the values of other fields in memory, however long.)
    """
    watch, seen = _one_file(request.headers.get("content-type", "")), 0

    async def receive() -> Message:
        nonlocal seen
        try:
            async with asyncio.timeout(_PATIENCE):
                message = await request.receive()
        except TimeoutError as error:
            raise MultiPartException("The upload stood still.") from error
        if message["type"] != "http.request":
            raise MultiPartException("The upload was broken off.")
        seen += len(message.get("body", b""))
        if seen > largest:
            raise MultiPartException(f"The file is larger than the maximum allowed size of {MAX_FILE_SIZE} bytes.")
        watch(message.get("body", b""))
        return message

    return receive


def _one_file(content_type: str) -> Callable[[bytes], Any]:
    """Called with piece after piece of a form, it raises MultiPartException if that is not one file."""
    parts, header = 0, b""

    def begin() -> None:
        nonlocal parts
        parts += 1
        if parts > 1:
            raise MultiPartException("The upload has several parts, expected one file.")

    def value(data: bytes, start: int, end: int) -> None:
        nonlocal header
        header += data[start:end]

    def finished() -> None:
        if b"filename" not in header:
            raise MultiPartException("The upload has a field that is no file.")

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        return lambda data: None  # Gradio refuses it before it reads on
    callbacks = {"on_part_begin": begin, "on_header_value": value, "on_headers_finished": finished}
    parser = MultipartParser(boundary, callbacks)

    def write(data: bytes) -> None:
        try:
            parser.write(data)
        except FormParserError as error:
            raise MultiPartException("The upload is no form.") from error

    return write


def _with_headers(send: Send, path: str) -> Callable[[Message], Awaitable[None]]:
    """Adds headers that keep browsers from taking a file of a visitor for a page."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(_HEADERS)
            if path.startswith(_FILE):
                headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
        await send(message)

    return sent
