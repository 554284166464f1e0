"""What can be done to many captions at once: tags added and removed, words replaced, tidied. Pure.

Each operation is one line of OPERATIONS: its words, the settings that it reads, and how they and the whole
set make a function from a caption to a caption. Tags are the parts of a caption between separators; they are
compared as a reader does, whatever their capitals, underscores and spaces.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..section import Section, UserError, knob
from . import patterns

Edit = Callable[[str], str]
Operation = Literal[
    "replace", "add", "remove", "rename", "prefix", "suffix", "dedupe", "sort",
    "shorten", "letters", "underscores", "tidy",
]  # fmt: skip


class EditSection(Section):
    """What is done to the captions. Each operation reads only those of the settings below that it names."""

    do: Operation = knob("replace", "What to do", "What is done to every caption chosen.", level="basic")
    text: str = knob(
        "",
        "Text",
        "What is looked for, added or removed; several tags with commas between them.",
        level="basic",
        max_length=5000,
    )
    new: str = knob("", "New text", "What comes in its place.", level="basic", max_length=5000)
    is_pattern: bool = knob(
        False,
        "Regular expression",
        r"Read the text as a pattern: '\d+' is any number, and '\1' in the new text is the first group.",
        level="basic",
    )
    match_case: bool = knob(False, "Match capitals", "Tell 'Dog' from 'dog'.", level="basic")
    place: Literal["front", "back"] = knob(
        "front", "Where", "The front of a caption counts most: trigger words belong there.", level="basic"
    )
    order: Literal["frequent first", "rare first", "alphabet"] = knob(
        "frequent first", "Order", "Frequent counts in how many captions of the set a tag is.", level="basic"
    )
    keep: int = knob(
        0, "Keep first tags", "How many tags at the front stay where they are.", unit="tags", ge=0,
        le=1000, level="basic",
    )  # fmt: skip
    most: int = knob(
        20, "At most", "Tags beyond this number are dropped.", unit="tags", ge=1, le=1000, level="basic"
    )
    letters: Literal["lower case", "UPPER CASE", "Sentence case"] = knob(
        "lower case", "Letters", "The models read all letters as small ones.", level="basic"
    )
    to: Literal["spaces", "underscores"] = knob(
        "spaces", "Change to", "Stable Diffusion was taught with spaces, booru tags have underscores.",
        level="basic",
    )  # fmt: skip
    separator: str = knob(
        ",", "Tag separator", "The character between two tags.", min_length=1, max_length=10
    )


@dataclass(frozen=True)
class Kind:
    """`said` are the words for the undo button, filled in with the settings; `uses` names the settings read,
    `needs` those that may not be empty.
    """

    title: str
    about: str
    said: str
    uses: tuple[str, ...]
    make: Callable[[EditSection, Sequence[str]], Edit]
    needs: tuple[str, ...] = ()


def edited(captions: Mapping[str, str], section: EditSection, of: Sequence[str]) -> dict[str, str]:
    """Return the captions that change, by the same names. `of` are all captions of the set, for counting.

    Raises:
        UserError: a setting that is needed is empty, or a pattern is none.
    """
    edit = edit_of(section, of)
    after = {name: edit(caption) for name, caption in captions.items()}
    return {name: caption for name, caption in after.items() if caption != captions[name]}


def edit_of(section: EditSection, of: Sequence[str]) -> Edit:
    """Return what is done to one caption. Raises UserError."""
    kind = OPERATIONS[section.do]
    for name in kind.needs:
        if not getattr(section, name).strip():
            title = EditSection.model_fields[name].title
            raise UserError(f"{title}: it is empty.", f"'{kind.title}' needs it.", name)
    return kind.make(section, of)


def words_for(section: EditSection) -> str:
    """Say what is done, for the undo button: "Tags removed: blurry"."""
    values = {name: _short(str(value)) for name, value in section.model_dump().items()}
    return OPERATIONS[section.do].said.format(**values)


def tags_of(caption: str, separator: str = ",") -> list[str]:
    """Return the tags of a caption as written, without empty ones."""
    return [tag for part in caption.split(separator) if (tag := part.strip())]


def joined(tags: Iterable[str], separator: str = ",") -> str:
    return f"{separator.strip()} ".join(tags)


@functools.lru_cache(2**16)  # a set has many captions and few tags
def same_tag(tag: str) -> str:
    """Return what two spellings of a tag have in common: no capitals, and spaces for underscores."""
    return " ".join(tag.casefold().replace("_", " ").split())


def frequencies(captions: Iterable[str], separator: str = ",") -> Counter[str]:
    """Return in how many captions each tag is, by `same_tag`."""
    return Counter(tag for caption in captions for tag in {same_tag(t) for t in tags_of(caption, separator)})


def _replace(section: EditSection, of: Sequence[str]) -> Edit:
    find = patterns.compiled(section.text, section.is_pattern, section.match_case)
    return lambda caption: find.replaced(caption, section.new)


def _tag_edit(change: Callable[[list[str], EditSection], list[str]]) -> Callable[..., Edit]:
    """An operation on tags; a caption whose tags stay as they are is not written anew."""

    def make(section: EditSection, of: Sequence[str]) -> Edit:
        def edit(caption: str) -> str:
            before = tags_of(caption, section.separator)
            after = change(list(before), section)
            return caption if after == before else joined(after, section.separator)

        return edit

    return make


def _added(tags: list[str], section: EditSection) -> list[str]:
    there = {same_tag(tag) for tag in tags}
    new = _without_doubles(tags_of(section.text, section.separator))
    new = [tag for tag in new if same_tag(tag) not in there]
    return new + tags if section.place == "front" else tags + new


def _removed(tags: list[str], section: EditSection) -> list[str]:
    gone = {same_tag(tag) for tag in tags_of(section.text, section.separator)}
    return [tag for tag in tags if same_tag(tag) not in gone]


def _renamed(tags: list[str], section: EditSection) -> list[str]:
    old, new = same_tag(section.text), tags_of(section.new, section.separator)
    if old not in map(same_tag, tags):
        return tags
    return _without_doubles([part for tag in tags for part in (new if same_tag(tag) == old else [tag])])


def _without_doubles(tags: Iterable[str], section: EditSection | None = None) -> list[str]:
    kept: dict[str, str] = {}
    for tag in tags:
        kept.setdefault(same_tag(tag), tag)
    return list(kept.values())


def _shortened(tags: list[str], section: EditSection) -> list[str]:
    return tags[: section.most]


def _sort(section: EditSection, of: Sequence[str]) -> Edit:
    sign = {"frequent first": -1, "rare first": 1, "alphabet": 0}[section.order]
    counts = frequencies(of, section.separator) if sign else Counter()

    def ordered(tags: list[str], section: EditSection) -> list[str]:
        loose = sorted(tags[section.keep :], key=lambda tag: (sign * counts[same_tag(tag)], same_tag(tag)))
        return tags[: section.keep] + loose

    return _tag_edit(ordered)(section, of)


def _prefixed(section: EditSection, of: Sequence[str]) -> Edit:
    """Put text in front, once: a caption that begins with it stays."""
    text = section.text.strip()

    def edit(caption: str) -> str:
        begins = caption.startswith(text) and not caption[len(text) : len(text) + 1].isalnum()
        return caption if begins else f"{text} {caption}".strip()

    return edit


def _suffixed(section: EditSection, of: Sequence[str]) -> Edit:
    text = section.text.strip()
    joint = "" if text[:1] in ",.;:!?" else " "
    return lambda caption: caption if caption.endswith(text) else f"{caption}{joint if caption else ''}{text}"


def _lettered(section: EditSection, of: Sequence[str]) -> Edit:
    def sentence(caption: str) -> str:
        return caption[:1].upper() + caption[1:].lower()

    return {"lower case": str.lower, "UPPER CASE": str.upper, "Sentence case": sentence}[section.letters]


def _respaced(tags: list[str], section: EditSection) -> list[str]:
    old, new = ("_", " ") if section.to == "spaces" else (" ", "_")
    return [tag if _is_face(tag) else tag.replace(old, new) for tag in tags]


def _is_face(tag: str) -> bool:
    """Tell whether a tag is a face of booru sites, such as ^_^ or 0_0: its underscore is its mouth."""
    return len(tag) == 3 and tag[1] == "_"


def _tidied(tags: list[str], section: EditSection) -> list[str]:
    return [" ".join(tag.split()) for tag in tags]


def _tidy(section: EditSection, of: Sequence[str]) -> Edit:
    separator = section.separator

    def edit(caption: str) -> str:
        tidied = joined(_tidied(tags_of(caption, separator), section), separator)
        return tidied if separator in caption else " ".join(caption.split())

    return edit


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


OPERATIONS: Mapping[Operation, Kind] = {
    "replace": Kind(
        "Replace text",
        "Find text and put other text in its place.",
        "Replaced: {text} by {new}",
        ("text", "new", "is_pattern", "match_case"),
        _replace,
        ("text",),
    ),
    "add": Kind(
        "Add tags",
        "Add tags to captions that do not have them.",
        "Tags added: {text}",
        ("text", "place"),
        _tag_edit(_added),
        ("text",),
    ),
    "remove": Kind(
        "Remove tags", "Take tags out.", "Tags removed: {text}", ("text",), _tag_edit(_removed), ("text",)
    ),
    "rename": Kind(
        "Rename a tag",
        "Call a tag otherwise.",
        "Tag renamed: {text} to {new}",
        ("text", "new"),
        _tag_edit(_renamed),
        ("text", "new"),
    ),
    "prefix": Kind(
        "Put text in front",
        "Put text in front of captions.",
        "In front: {text}",
        ("text",),
        _prefixed,
        ("text",),
    ),
    "suffix": Kind(
        "Put text behind", "Put text behind captions.", "Behind: {text}", ("text",), _suffixed, ("text",)
    ),
    "dedupe": Kind(
        "Remove double tags",
        "Keep each tag of a caption once, where it came first.",
        "Double tags removed",
        (),
        _tag_edit(_without_doubles),
    ),
    "sort": Kind("Sort tags", "Put tags in order.", "Tags sorted: {order}", ("order", "keep"), _sort),
    "shorten": Kind(
        "Keep the first tags",
        "Drop tags at the end.",
        "At most {most} tags",
        ("most",),
        _tag_edit(_shortened),
    ),
    "letters": Kind(
        "Capital letters", "Make letters small or large.", "Letters: {letters}", ("letters",), _lettered
    ),
    "underscores": Kind(
        "Underscores and spaces",
        "Change underscores to spaces, or back.",
        "Changed to {to}",
        ("to",),
        _tag_edit(_respaced),
    ),
    "tidy": Kind("Tidy up", "Remove empty tags and doubled spaces.", "Tidied", (), _tidy),
}
