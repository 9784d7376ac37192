"""Serves the page itself in Vietnamese to visitors who read that.

Gradio translates in the browser, but starts only in languages it has words of its own for, and Vietnamese is none. So
Vietnamese visitors get the Vietnamese words in the place of the English ones.
"""

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from viavsp_jax.app.page import language

_SCRIPT = b"""<script>
  gradio_config.i18n_translations.en = gradio_config.i18n_translations.vi;
  gradio_config.title = gradio_config.i18n_translations.vi[gradio_config.title];
  // Gradio takes what it shows for English.
  const root = document.documentElement;
  const keep = () => { if (root.lang !== "vi") root.lang = "vi"; };
  new MutationObserver(keep).observe(root, { attributeFilter: ["lang"] });
</script></head>"""


class Front:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp):
        """`app` is Gradio's."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["type"] == "http" and scope["path"].removeprefix(scope.get("root_path", ""))
        if path == "/" and language.of(Request(scope)) == "vi":
            send = _translated(send)
        await self._app(scope, receive, send)


def _translated(send: Send) -> Send:
    start, page = None, b""

    async def sent(message: Message) -> None:
        nonlocal start, page
        if message["type"] == "http.response.start":
            start = message
            return
        page += message.get("body", b"")
        if message.get("more_body"):
            return
        page = page.replace(b'lang="en"', b'lang="vi"', 1).replace(b"</head>", _SCRIPT, 1)
        MutableHeaders(scope=start)["Content-Length"] = str(len(page))
        await send(start)
        await send({"type": "http.response.body", "body": page})

    return sent
