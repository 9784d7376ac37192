"""Rows of hypotheses, and the page of a report as a browser takes it."""

import html.parser


def row(name, reference, hypothesis, seconds=3.0, target="vi"):
    return {
        "id": name, "reference": reference, "hypothesis": hypothesis, "score": -0.5,
        "source_language": "vi", "target_language": target, "seconds": seconds,
    }  # fmt: skip


class Page(html.parser.HTMLParser):
    """Texts, names of elements and attributes, and where links lead; every element has to end."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.elements, self.links, self.ids, self._open = [], set(), [], [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements |= {tag, *(f"{tag} {name}" for name, _ in attributes)}
        self.links += [value for name, value in attributes if name in ("href", "src", "xlink:href")]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in ("meta", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())
