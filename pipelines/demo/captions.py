"""Captions of DigitScenes, both ways: `write` says what a scene shows, `parse` reads it back.

A caption is a list of phrases, each about one thing:

    a blue three                            a digit
    a three drawn in blue ink on the left   a digit and its place
    a red seven left of a green two         two digits, whose places follow from the relation
    on grey paper                           the paper

Commas, full stops, "and" and "with" separate phrases; the words of `FILLERS` mean nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.demo.scenes import INKS, LAYOUTS, PAPERS, PLACES, Item, Scene

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

RELATIONS: dict[str, tuple[str, str]] = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
"""Relation → places of the first and of the second digit."""

FILLERS = (
    "a an at digit digits drawn handwritten in is it number of on paper part picture plain scene "
    "sheet shows side stands the there this to written"
)

_BRIEF = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "centre": "in the centre",
}
_LONG = {
    "left": "on the left side",
    "right": "on the right side",
    "top": "in the top part",
    "bottom": "in the bottom part",
    "centre": "in the centre",
}

_DIGIT, _INK = "|".join(DIGITS), "|".join(INKS)
_TOKEN = re.compile(
    rf"(?P<count>one|two|three) (?:handwritten )?digits?\b"
    rf"|(?P<ink>{_INK}) (?:handwritten )?(?:digit |number )?(?P<digit>{_DIGIT})\b"
    rf"|(?P<digit2>{_DIGIT}) (?:drawn |written )?in (?P<ink2>{_INK})(?: ink)?\b"
    rf"|(?P<paper>{'|'.join(PAPERS)}) paper\b"
    rf"|(?P<relation>{'|'.join(RELATIONS)})\b(?! the (?:picture|scene|paper|sheet))"
    rf"|(?P<place>{'|'.join(PLACES)})\b"
    r"|(?P<separator>[.,;:!?]|(?:and|with)\b)"
    r"|(?P<other>[^\s.,;:!?]+)"
)


@dataclass(frozen=True)
class AskItem:
    """A digit (0–9) that a caption asks for, its ink, and its place where the caption names one."""

    digit: int
    ink: str
    place: str | None


@dataclass(frozen=True)
class Ask:
    """What a caption asks for, its digits in the order of the text."""

    items: tuple[AskItem, ...]
    paper: str | None


def write(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene in one of several forms, from 3 to about 60 words.

    Every form names all digits and their inks.  About 85 % of captions also name or imply every
    place, and about half name the paper.
    """
    paper = scene.paper if rng.random() < 0.5 else None
    placed = rng.random() >= (0.25 if len(scene.items) == 1 else 0.10)
    items = [scene.items[i] for i in rng.permutation(len(scene.items))]
    if not placed:
        return _with_paper(_listed([_noun(item) for item in items]), paper, rng)
    form = rng.choice(["list", "places first", "relation", "sentences"])
    if form == "sentences":
        return _sentences(items, paper, rng)
    if form == "relation" and (related := _related(items, rng)):
        return _with_paper(related, paper, rng)
    if form == "places first":
        text = _listed([f"{_BRIEF[item.place]} {_noun(item)}" for item in items])
    else:
        text = _listed([f"{_noun(item)} {_BRIEF[item.place]}" for item in items])
    return _with_paper(text, paper, rng)


def parse(caption: str) -> Ask:
    """Read what a caption asks for; the inverse of `write`.

    Raises:
        ValueError: The text is not a caption of a scene that DigitScenes can show.
    """
    text = " ".join(caption.lower().split())
    items: list[AskItem] = []
    papers: set[str] = set()
    counts: set[int] = set()
    for phrase in _phrases(text):
        digits: list[tuple[int, str]] = []
        places: list[str] = []
        relations: list[str] = []
        for token in phrase:
            found = token.groupdict()
            if word := found["digit"] or found["digit2"]:
                digits.append((DIGITS.index(word), found["ink"] or found["ink2"]))
            elif found["place"]:
                places.append(found["place"])
            elif found["relation"]:
                relations.append(found["relation"])
            elif found["paper"]:
                papers.add(found["paper"])
            elif found["count"]:
                counts.add(DIGITS.index(found["count"].split()[0]))
        match len(digits), len(places), len(relations):
            case (0, 0, 0):
                continue
            case (1, 0, 0):
                where: tuple[str | None, ...] = (None,)
            case (1, 1, 0):
                where = (places[0],)
            case (2, 0, 1):
                where = RELATIONS[relations[0]]
            case _:
                unclear = text[phrase[0].start() : phrase[-1].end()]
                raise ValueError(
                    f"cannot tell which digit stands where in {unclear!r}: write phrases such as "
                    "'a blue three on the left' or 'a red seven above a green two', "
                    "with a comma or 'and' between them"
                )
        items += [AskItem(*digit, place) for digit, place in zip(digits, where, strict=True)]
    if len(papers) > 1:
        raise ValueError(f"{caption!r} names {len(papers)} papers: name at most one")
    if counts - {len(items)}:
        raise ValueError(
            f"{caption!r} announces {counts.pop()} digits and describes {len(items)}: "
            "describe each digit, or leave the number out"
        )
    _check_layout(items, caption)
    return Ask(tuple(items), papers.pop() if papers else None)


def _phrases(text: str) -> Iterator[list[re.Match[str]]]:
    """Split a caption in lower case into phrases, lists of the tokens that mean something."""
    phrase: list[re.Match[str]] = []
    for token in _TOKEN.finditer(text):
        if token["other"] and token["other"] not in FILLERS.split():
            raise ValueError(
                f"cannot read {text!r} from {text[token.start() :]!r} on: write an ink "
                f"({', '.join(INKS)}) and a digit in words ({DIGITS[0]} to {DIGITS[-1]}), then if "
                f"you like a place ({', '.join(PLACES)}) and a paper ({', '.join(PAPERS)}), "
                "as in 'a blue three on the left, on grey paper'"
            )
        if token["separator"] and phrase:
            yield phrase
            phrase = []
        elif not token["other"] and not token["separator"]:
            phrase.append(token)
    if phrase:
        yield phrase


def _check_layout(items: list[AskItem], caption: str) -> None:
    """Refuse what no scene shows."""
    if len(items) not in LAYOUTS:
        raise ValueError(
            f"{caption!r} asks for {len(items)} digits: ask for one to three, "
            "as in 'a blue three and a red seven'"
        )
    places = [item.place for item in items if item.place]
    if len(set(places)) < len(places) or not any(
        set(places) <= set(layout) for layout in LAYOUTS[len(items)]
    ):
        raise ValueError(
            f"{caption!r} puts digits where they would overlap ({', '.join(places)}): give each "
            "its own place, and do not combine the centre with the top or the bottom"
        )


def _noun(item: Item) -> str:
    return f"{'an' if item.ink == 'orange' else 'a'} {item.ink} {DIGITS[item.digit]}"


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def _with_paper(text: str, paper: str | None, rng: np.random.Generator) -> str:
    if paper is None:
        return text
    return f"{text}, on {paper} paper" if rng.random() < 0.5 else f"on {paper} paper, {text}"


def _related(items: list[Item], rng: np.random.Generator) -> str | None:
    """Say two digits by a relation and a third by its place; None where no relation holds."""
    at = {item.place: item for item in items}
    fitting = [name for name, places in RELATIONS.items() if set(places) <= set(at)]
    if not fitting:
        return None
    relation = str(rng.choice(fitting))
    first, second = (at.pop(place) for place in RELATIONS[relation])
    rest = [f"with {_noun(item)} {_BRIEF[item.place]}" for item in at.values()]
    return ", ".join([f"{_noun(first)} {relation} {_noun(second)}", *rest])


def _sentences(items: list[Item], paper: str | None, rng: np.random.Generator) -> str:
    """Describe the scene in full sentences, one for each digit."""
    count = f"{DIGITS[len(items)]} handwritten digit{'s' if len(items) > 1 else ''}"
    sheet = f" on a plain sheet of {paper} paper" if paper else ""
    subject = rng.choice(["picture", "scene"])
    sentences = [f"This {subject} shows {count}{sheet}."]
    long = rng.random() < 0.5
    for item in items:
        if long:
            where = f"{_LONG[item.place].capitalize()} of the {subject}"
            digit = f"{'an' if item.digit == 8 else 'a'} {DIGITS[item.digit]}"
            sentences.append(f"{where} there is {digit} drawn in {item.ink} ink.")
        else:
            sentences.append(f"{_noun(item).capitalize()} stands {_BRIEF[item.place]}.")
    return " ".join(sentences)
