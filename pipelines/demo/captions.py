"""Captions of EmojiScenes: `write` describes a scene, `parse` reads a caption back.

A caption is a list of phrases, each about one thing:

    a frog                                  a thing
    a frog on the left                      a thing and its place
    a frog left of a rocket                 two things, whose places follow from the relation
    on a pink background                    the ground
    Noto style                              the artist

Punctuation, "and" and "with" separate phrases. Text in brackets and unknown words are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.demo.drawings import ARTISTS, CONCEPTS, keywords
from pipelines.demo.scenes import GROUNDS, PLACES, Item, Scene

RELATIONS: dict[str, tuple[str, str]] = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
}
"""Relation → places of the first and the second thing."""

_BRIEF = {
    "left": "on the left",
    "right": "on the right",
    "centre": "in the centre",
}
_LONG = {
    "left": "On the left side",
    "right": "On the right side",
    "centre": "In the centre",
}

_BY_NAME = {
    name.lower(): number for number, c in enumerate(CONCEPTS) for name in (*c.names, *c.unseen)
}
_UNSEEN = {name.lower() for c in CONCEPTS for name in c.unseen}


def _any(words: Iterable[str]) -> str:
    """A pattern that matches any of the words, longest first."""
    return "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True))


_TOKEN = re.compile(
    rf"\b(?P<concept>{_any(_BY_NAME)})\b"
    rf"|\b(?P<relation>{_any(RELATIONS)})\b(?! the (?:picture|scene))"
    rf"|\b(?P<place>{_any(PLACES)})\b"
    rf"|\b(?P<ground>{_any(GROUNDS)})\b"
    rf"|\b(?P<artist>{_any(a.lower() for a in ARTISTS)})\b"
    r"|(?P<separator>[.,;:!?]|\b(?:and|with)\b)"
)


@dataclass(frozen=True)
class AskItem:
    """A thing that a caption asks for, and its place if the caption names one."""

    concept: int
    place: str | None


@dataclass(frozen=True)
class Ask:
    """What a caption asks for, with things in the order of the text."""

    items: tuple[AskItem, ...]
    ground: str | None
    artist: str | None
    unseen: bool = False
    """Whether it uses a word that no training caption has."""


def write(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene in one of several forms, of 3 to about 60 words.

    Every caption names all things; 80 % name the places, 75 % the ground, and 75 % the artist.
    Of two things the left one comes first: networks of the demo's size learn the order of things
    within minutes, but hardly ever what "left" and "right" say.
    """
    ground = scene.ground if rng.random() < 0.75 else None
    artist = scene.artist if rng.random() < 0.75 else None
    placed = rng.random() < 0.8
    items = scene.items
    names = [_name(item, scene.unseen, rng) for item in items]
    if rng.random() < 0.1:
        return _sentences(items, names, ground, artist, rng)
    if not placed:
        text = " and ".join(_noun(name) for name in names)
        if ground is None and artist is None:
            text = f"picture of {text}"
    elif len(items) == 2 and rng.random() < 0.6:
        text = f"{_noun(names[0])} left of {_noun(names[1])}"
    else:
        text = " and ".join(f"{_noun(n)} {_BRIEF[i.place]}" for n, i in zip(names, items))
    parts = [text]
    if ground:
        form = ("on a {} background", "on {}", "against a plain {} background")[rng.integers(3)]
        parts.insert(int(rng.integers(2)), form.format(ground))
    if artist:
        parts.append(
            ("{} style", "in the style of {}", "drawn by {}")[rng.integers(3)].format(artist)
        )
    return ", ".join(parts)


def parse(caption: str) -> Ask:
    """Parse what a caption asks for; the inverse of `write`.

    Raises:
        ValueError: The text asks for no known thing, for more than two, or for an impossible scene.
    """
    text = re.sub(r"\([^)]*\)", "", " ".join(caption.lower().split()))
    items: list[AskItem] = []
    grounds: set[str] = set()
    artists: set[str] = set()
    unseen = False
    for phrase in _phrases(text):
        concepts: list[int] = []
        places: list[str] = []
        relations: list[str] = []
        for token in phrase:
            found = token.groupdict()
            if word := found["concept"]:
                concepts.append(_BY_NAME[word])
                unseen |= word in _UNSEEN
            elif found["place"]:
                places.append(found["place"])
            elif found["relation"]:
                relations.append(found["relation"])
            elif found["ground"]:
                grounds.add(found["ground"])
            elif found["artist"]:
                artists.add(next(a for a in ARTISTS if a.lower() == found["artist"]))
        match len(concepts), len(places), len(relations):
            case (0, _, 0):
                continue
            case (1, 0, 0):
                where: tuple[str | None, ...] = (None,)
            case (1, _, 0) if len(set(places)) == 1:
                where = (places[0],)
            case (2, 0, 1):
                where = RELATIONS[relations[0]]
            case _:
                unclear = text[phrase[0].start() : phrase[-1].end()]
                raise ValueError(
                    f"cannot tell which thing stands where in {unclear!r}: write phrases such as "
                    "'a frog on the left' or 'a frog left of a rocket', with a comma or 'and' "
                    "between them"
                )
        items += [AskItem(c, place) for c, place in zip(concepts, where, strict=True)]
    if not 1 <= len(items) <= 2:
        raise ValueError(
            f"{caption!r} asks for {len(items)} things that can be read: ask for one or two of "
            f"{', '.join(c.name for c in CONCEPTS)}"
        )
    named = [item.place for item in items if item.place]
    if len(items) == 2 and named and (len(set(named)) < len(named) or "centre" in named):
        raise ValueError(f"{caption!r} puts two things where they would overlap")
    for what, words in (("grounds", grounds), ("artists", artists)):
        if len(words) > 1:
            raise ValueError(f"{caption!r} names {len(words)} {what}: name at most one")
    return Ask(
        tuple(items),
        grounds.pop() if grounds else None,
        artists.pop() if artists else None,
        unseen,
    )


def _phrases(text: str) -> Iterator[list[re.Match[str]]]:
    """Split a lower-case caption into phrases, each a list of its known tokens."""
    phrase: list[re.Match[str]] = []
    for token in _TOKEN.finditer(text):
        if not token["separator"]:
            phrase.append(token)
        elif phrase:
            yield phrase
            phrase = []
    if phrase:
        yield phrase


def _name(item: Item, unseen: bool, rng: np.random.Generator) -> str:
    """A name of the thing: an unseen word if asked for, else one of the training names."""
    concept = CONCEPTS[item.concept]
    if unseen:
        return concept.unseen[rng.integers(len(concept.unseen))]
    if concept.others and rng.random() < 0.5:
        return concept.others[rng.integers(len(concept.others))]
    return concept.name


def _noun(name: str) -> str:
    """A name with its article; plurals have none."""
    if name.endswith("s") and not name.endswith(("us", "ss")):
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _sentences(
    items: Sequence[Item],
    names: list[str],
    ground: str | None,
    artist: str | None,
    rng: np.random.Generator,
) -> str:
    """Describe the scene in full sentences, one per thing."""
    subject = ("picture", "scene")[rng.integers(2)]
    count = ("one thing", "two things")[len(items) - 1]
    on = f" on a plain {ground} background" if ground else ""
    sentences = [f"This {subject} shows {count}{on}."]
    long = rng.random() < 0.1
    for item, name in zip(items, names, strict=True):
        if long:
            about = [k for k in keywords(item.concept) if rng.random() < 0.7][:4]
            aside = f" ({', '.join(about)})" if about else ""
            sentences.append(f"{_LONG[item.place]} of the {subject} there is {_noun(name)}{aside}.")
        else:
            noun = _noun(name)
            sentences.append(f"{noun[0].upper()}{noun[1:]} stands {_BRIEF[item.place]}.")
    if artist:
        sentences.append(f"It is drawn in the style of {artist}.")
    return " ".join(sentences)
