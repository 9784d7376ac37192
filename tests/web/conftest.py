"""Fixtures of the web page's tests; only these import Gradio."""

from page_requests import abandoned, client, event, page, uploads, words

__all__ = ["abandoned", "client", "event", "page", "uploads", "words"]
