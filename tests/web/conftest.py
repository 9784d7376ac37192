"""Fixtures of the web page's tests; only these import Gradio."""

from page_requests import client, event, page, uploads, words

__all__ = ["client", "event", "page", "uploads", "words"]
