"""Parse an HTML page into a tree of elements."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "input", "br"}


class Element:
    def __init__(self, name, attributes, above):
        self.name, self.attributes, self.above = name, dict(attributes), above
        self.inside = []

    def all(self, name="", **attributes):
        """All elements below with a tag name and attributes that contain given words."""
        for part in self.inside:
            if isinstance(part, Element):
                words = {k: (part.attributes.get(k) or "").split() for k in part.attributes}
                if name in ("", part.name) and all(
                    v in words.get(k.rstrip("_").replace("_", "-"), ())
                    for k, v in attributes.items()
                ):
                    yield part
                yield from part.all(name, **attributes)

    def one(self, name="", **attributes):
        [found] = self.all(name, **attributes)
        return found

    @property
    def text(self):
        parts = (p if isinstance(p, str) else p.text for p in self.inside)
        return " ".join(" ".join(parts).split())

    def style(self, key):
        return float(re.search(rf"(?:^|;){key}:([-\d.]+)", self.attributes["style"])[1])


class Page(HTMLParser):
    """Parses a page; fails on a tag that is not closed, or is closed twice."""

    def __init__(self, text):
        super().__init__()
        self.root = self.at = Element("", {}, None)
        self.feed(text)
        self.close()
        assert self.at is self.root, f"<{self.at.name}> is not closed"

    def handle_starttag(self, tag, attributes):
        element = Element(tag, attributes, self.at)
        self.at.inside.append(element)
        self.at = self.at if tag in VOID else element

    def handle_startendtag(self, tag, attributes):
        self.at.inside.append(Element(tag, attributes, self.at))

    def handle_endtag(self, tag):
        assert tag == self.at.name, f"</{tag}> closes <{self.at.name}>"
        self.at = self.at.above

    def handle_data(self, data):
        self.at.inside.append(data)
