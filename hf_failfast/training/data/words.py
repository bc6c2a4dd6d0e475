"""Words and sentences to fill prompts with: WordNet's where it is installed, and Python's own documentation."""

import importlib
import inspect
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HOW_TO_GET_IT = (
    "`source` natural needs WordNet's database (data.noun, cntlist.rev, ...); get it with: apt-get install "
    "wordnet-base, or: python -m nltk.downloader wordnet, or name its folder in WNSEARCHDIR"
)
# Where Debian's and Fedora's packages, Homebrew and NLTK's downloader put it; WNSEARCHDIR is WordNet's own variable.
FOLDERS = (
    "/usr/share/wordnet",
    "/usr/share/wordnet-3.0/dict",
    "/opt/homebrew/opt/wordnet/dict",
    "/usr/local/opt/wordnet/dict",
    "~/nltk_data/corpora/wordnet",
    "/usr/share/nltk_data/corpora/wordnet",
)
PARTS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv"}  # WordNet's numbers; 5 is an adjective too
LEAST_USES = {"noun": 2, "verb": 4, "adj": 3}  # in WordNet's tagged texts: rarer words are ones that nobody asks about
UNWANTED = re.compile(r"sex|kill|rape|drug|whore|nazi|suicid|porn|slave|murder")
SIGNATURE = re.compile(r"^\w+\(|->")  # some begin with it in place of a sentence
MODULES = (
    "argparse base64 bisect calendar collections colorsys configparser contextlib copy csv dataclasses datetime "
    "decimal difflib email.utils enum fnmatch fractions functools glob hashlib heapq html inspect ipaddress itertools "
    "json logging math operator os pathlib queue random re secrets shutil socket statistics string struct tempfile "
    "textwrap threading time types unicodedata urllib.parse zlib"
)


@dataclass(frozen=True)
class Words:
    """sentences: whole ones, of 25 to 160 characters. definitions: (noun, what it is). functions: (name of a function
    of the standard library, the first sentence of its documentation)."""

    nouns: Sequence[str]
    verbs: Sequence[str]
    adjectives: Sequence[str]
    sentences: Sequence[str]
    definitions: Sequence[tuple[str, str]]
    functions: Sequence[tuple[str, str]]

    @cached_property
    def meanings(self) -> Sequence[str]:
        return [meaning for _, meaning in self.definitions]


def wordnet_folder() -> Path:
    """Raises FileNotFoundError saying how to get it."""
    named = os.environ.get("WNSEARCHDIR")
    for folder in [named] if named else FOLDERS:
        path = Path(folder).expanduser()
        if (path / "cntlist.rev").is_file() and (path / "data.noun").is_file():
            return path
    raise FileNotFoundError(f"{HOW_TO_GET_IT}{'' if named is None else f' (now {named})'}.")


def read_words(folder: Path) -> Words:
    """From WordNet's database files of versions 3.0 and 3.1 (their format: wndb(5WN))."""
    uses = _uses(folder)
    common = {
        part: [word for (word, of), count in uses.items() if of == part and count >= least and _is_usable(word)]
        for part, least in LEAST_USES.items()
    }
    nouns = dict.fromkeys(common["noun"], "")  # the count list is in lower case; names are not
    sentences: dict[str, None] = {}
    definitions: dict[str, str] = {}
    for part in PARTS.values():
        for words, gloss in _synsets(folder / f"data.{part}"):
            for quoted in re.findall(r'"([^"]{25,160})"', gloss):
                if not UNWANTED.search(quoted.lower()):
                    sentences[_sentence(quoted)] = None
            definition = gloss.partition(";")[0].strip()
            if part == "noun":
                for word in words:
                    if word.lower() in nouns:
                        nouns[word.lower()] = nouns[word.lower()] or word
                if words[0].lower() in nouns and not UNWANTED.search(definition):
                    definitions.setdefault(words[0], definition)
    return Words(
        [word for word in nouns.values() if word],
        common["verb"],
        common["adj"],
        list(sentences),
        list(definitions.items()),
        list(_functions()),
    )


def _uses(folder: Path) -> Counter[tuple[str, str]]:
    """How often (word, part of speech) is tagged, over all senses. A line is `lemma%part:... sense count`."""
    uses: Counter[tuple[str, str]] = Counter()
    for line in (folder / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        word, _, sense = key.partition("%")
        part = PARTS.get(sense[0])
        if part is not None:
            uses[word.replace("_", " "), part] += int(count)
    return uses


def _is_usable(word: str) -> bool:
    return len(word) > 2 and word.replace(" ", "").isalpha() and not UNWANTED.search(word)


def _synsets(path: Path) -> Iterator[tuple[list[str], str]]:
    """(words, gloss) of a line `offset file type count word id word id ... | gloss`; the licence is indented."""
    for line in path.read_text().splitlines():
        if not line.startswith(" "):
            entry, _, gloss = line.partition(" | ")
            fields = entry.split()
            count = int(fields[3], 16)
            yield [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]], gloss.strip()


def _sentence(quoted: str) -> str:
    ended = quoted if quoted[-1] in ".!?" else f"{quoted}."
    return ended[0].upper() + ended[1:]


def _functions() -> Iterator[tuple[str, str]]:
    for module in MODULES.split():
        for name, member in vars(importlib.import_module(module)).items():
            text = inspect.getdoc(member) if callable(member) and not name.startswith("_") else None
            summary = " ".join((text or "").split("\n\n")[0].split()).rstrip(".")
            if 20 < len(summary) < 160 and not SIGNATURE.search(summary):
                yield name, summary
