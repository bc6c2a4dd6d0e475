"""The trace page: right, self-contained, safe, and alive in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from eval_support import save_models
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from hf_failfast.cli.app import app
from hf_failfast.cli.output.trace_page import trace_page
from hf_failfast.decoding.stats import RoundRecord, SpecDecodingStats
from hf_failfast.measure.tracing import Trace, TracedRound

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = "<script>document.title='owned'</script>"
WORDS = ["<end>", NASTY, "\"'&", "</div>", " plain", "{{ 7 * 7 }}", "\n", "\\u0041", "`${1}`"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<end>"))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


@pytest.fixture(scope="module")
def page(tokenizer: PreTrainedTokenizerFast) -> str:
    """Four rounds: two accepted and one refused, a whole draft, no draft, an end inside of a draft."""
    rounds = [
        TracedRound([1, 2, 3, 4], [0.91, 0.82, 0.73, 0.64], 2, [1, 2, 5], [0.5, 0.6, 0.7], 1, 0.01, 0.03),
        TracedRound([3], [0.9], 1, [3, 6], [0.8, 0.7], 1, 0.01, 0.03),
        TracedRound([], [], 0, [8], [0.25], 0, 0.0, 0.03),
        TracedRound([7, 0, 4], [0.9, 0.9, 0.4], 2, [7, 0], [0.9, 1.0], 2, 0.01, 0.03),
    ]
    stats = SpecDecodingStats(draft_seconds=0.03, verify_seconds=0.12, other_seconds=0.01)
    for traced in rounds:
        stats.observe(RoundRecord(len(traced.draft_ids), traced.accepted, len(traced.emitted_ids), traced.passes))
    trace = Trace([1, 2], rounds, stats)
    names = {"target": "a <b>target</b>", "drafter": "a drafter"}
    return trace_page(trace, tokenizer, prompt=f"Why {NASTY}?", names=names, facts={"dtype": "float32"})


class Reader(HTMLParser):
    """The page's elements, and the text in each kind of them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.texts: dict[int, str] = {}
        self.open: list[int] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data

    def tokens(self) -> list[tuple[str, str, list[str]]]:
        """(text, classes, tip) of every token of the text."""
        return [
            (self.texts.get(index, ""), attributes["class"], json.loads(attributes["data-tip"]))
            for index, (tag, attributes) in enumerate(self.elements)
            if tag == "span" and "data-tip" in attributes
        ]


def test_tokens_say_how_they_came(page: str) -> None:
    tokens = Reader(page).tokens()
    assert [text for text, _, _ in tokens] == [WORDS[index] for index in (1, 2, 5, 3, 6, 8, 7, 0)]
    kinds = [classes for _, classes, _ in tokens]
    assert kinds == ["accepted", "accepted", "bonus", "accepted", "bonus", "plain", "accepted", "accepted special"]
    assert tokens[1][2] == [
        repr(WORDS[2]), "accepted, round 1", "target's probability 60.0%", "drafter's confidence 82.0%",
    ]  # fmt: skip
    assert tokens[2][2][-1] == f"drafted instead: {WORDS[3]!r}, confidence 73.0%"


def test_the_strip_shows_every_draft(page: str) -> None:
    reader = Reader(page)
    cells = [attributes["class"] for tag, attributes in reader.elements if tag == "b"]
    assert cells == [
        "accepted", "accepted", "rejected", "unjudged",
        "accepted",
        "plain",
        "accepted", "accepted", "unjudged",
    ]  # fmt: skip
    rounds = [json.loads(a["data-tip"]) for _, a in reader.elements if a.get("class") == "round"]
    assert len(rounds) == 4 and rounds[0][0] == "round 1: 4 drafted, 2 accepted"
    assert rounds[0][4] == f"{WORDS[3]!r} 73% rejected"


def test_what_strategies_suggested_has_a_colour_of_its_own(tokenizer: PreTrainedTokenizerFast, page: str) -> None:
    """Tokens after the drafter's own, and in a round without a draft, are no drafts; the legend names them."""
    rounds = [
        TracedRound([1, 2], [0.91, 0.82], 4, [1, 5, 6, 7, 8], [0.5] * 5, 1, 0.01, 0.03),
        TracedRound([], [], 2, [3, 4, 5], [0.5] * 3, 0, 0.0, 0.03),
    ]
    stats = SpecDecodingStats(verify_seconds=0.1)
    for traced in rounds:
        stats.observe(RoundRecord(6, traced.accepted, len(traced.emitted_ids), traced.passes))
    html = trace_page(
        Trace([1], rounds, stats), tokenizer, prompt="p", names={"target": "t", "drafter": "d"}, facts={}
    )
    reader = Reader(html)
    assert [kind for _, kind, _ in reader.tokens()] == [
        "accepted", "suggested", "suggested", "suggested", "bonus", "suggested", "suggested", "bonus",
    ]  # fmt: skip
    assert reader.tokens()[1][2][-1] == f"drafted instead: {WORDS[2]!r}, confidence 82.0%"
    cells = [attributes["class"] for tag, attributes in reader.elements if tag == "b"]
    assert cells == ["accepted", "rejected", "suggested", "suggested", "suggested", "suggested", "suggested"]
    assert "suggested by a strategy" in html and "suggested by a strategy" not in page


def test_code_between_fences_has_a_font_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    """Fences included, whatever tokens they are cut into; prose before and after has none."""
    words = ["<end>", "Try ", "```", "py\n", "x = 1", "\n``", "`", " and so on"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<end>"))
    inner.decoder = decoders.Fuse()
    ids = list(range(1, len(words)))
    traced = TracedRound(ids[:3], [0.9] * 3, 3, ids, [0.9] * len(ids), 1, 0.01, 0.03)
    stats = SpecDecodingStats(verify_seconds=0.1)
    stats.observe(RoundRecord(3, 3, len(ids), 1))
    trace = Trace([1], [traced], stats)
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    html = trace_page(trace, fast, prompt="p", names={"target": "t", "drafter": "d"}, facts={})
    is_code = {text: "code" in classes.split() for text, classes, _ in Reader(html).tokens()}
    assert is_code == dict(zip(words[1:], [False, True, True, True, True, True, False], strict=True))


def test_axes_and_figures_have_names(page: str) -> None:
    """What is drawn says what it counts: the strip's axes with the longest draft, and a share of what."""
    reader = Reader(page)
    texts = {
        attributes["class"]: reader.texts[index].strip()
        for index, (_, attributes) in enumerate(reader.elements)
        if attributes.get("class") in ("x", "y")
    }
    assert texts == {"y": "draft tokens", "x": "share of the time from the first draft to the last token"}
    assert "round, in order (one target forward each)" in page
    labels = [reader.texts[index] for index, (tag, _) in enumerate(reader.elements) if tag == "dt"]
    assert "acceptance rate, of draft tokens" in labels
    scale = [reader.texts[index] for index, (tag, a) in enumerate(reader.elements) if tag == "i" and not a]
    assert scale == ["4", "0"]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in")
@pytest.mark.parametrize("width", [360, 390, 768, 1200])
def test_no_tile_is_empty(page: str, tmp_path: Path, width: int) -> None:
    """The tiles of the figures fill their rows on a phone as on a screen, and the page is no wider than it."""
    script = """<script>
      const list = document.querySelector(".figures").getBoundingClientRect();
      const tiles = [...document.querySelectorAll(".figures div")].map((tile) => tile.getBoundingClientRect());
      const covered = tiles.reduce((area, tile) => area + tile.width * tile.height, 0) / (list.width * list.height);
      const overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
      document.title = JSON.stringify({covered, overflow});
    </script></body>"""
    frame = tmp_path / "frame.html"
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", script), encoding="utf-8")
    # Headless Chromium's own window is never narrower than 500 pixels, a frame is.
    onload = "document.title = frames[0].document.title"
    frame.write_text(f'<iframe src="page.html" style="width:{width}px;height:800px" onload="{onload}"></iframe>')
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    result = subprocess.run(
        [str(CHROMIUM), *options, f"--user-data-dir={tmp_path / 'profile'}", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(re.search(r"<title>(.*?)</title>", result.stdout)[1])
    assert found["covered"] > 0.97 and found["overflow"] <= 0


def test_nothing_a_model_writes_becomes_markup(page: str) -> None:
    elements = Reader(page).elements
    assert sum(tag == "script" for tag, _ in elements) == 1
    assert not any(name.startswith("on") for _, attributes in elements for name in attributes)
    assert NASTY not in page and "<b>target" not in page


def test_the_page_needs_nothing_else(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in Reader(page).elements}
    assert not any({"src", "href"} & set(attributes) for _, attributes in Reader(page).elements)
    assert "prefers-color-scheme: dark" in page


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in")
def test_in_a_browser(page: str, tmp_path: Path) -> None:
    """The page's own script runs, hovering shows what the token's round was, and no injected script does."""
    probe = "<script>show(document.querySelector('.text [data-tip]'))</script></body>"
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", probe), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    result = subprocess.run(
        [*command, profile, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    reader = Reader(result.stdout)
    found = {attributes.get("id"): index for index, (_, attributes) in enumerate(reader.elements)}
    tip = reader.elements[found["tip"]][1]
    assert "hidden" not in tip
    shown = [text for index, text in reader.texts.items() if index > found["tip"]]
    assert shown[:4] == [repr(NASTY), "accepted, round 1", "target's probability 50.0%", "drafter's confidence 91.0%"]
    lit = [attributes for _, attributes in reader.elements if "lit" in attributes.get("class", "").split()]
    assert [part["data-round"] for part in lit] == ["0"] * 4, "the round's three tokens and its column"
    assert "<title>hf_failfast trace" in result.stdout


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    folders = save_models(tmp_path)
    out = tmp_path / "deep" / "trace.html"
    arguments = ["trace", "--out", out, "--target", folders["target"], "--drafter", folders["drafter"]]
    result = CliRunner().invoke(app, [*map(str, arguments), "--max-new-tokens", "12", "--dtype", "float32", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout.strip().splitlines()[-1])
    tokens = Reader(out.read_text(encoding="utf-8")).tokens()
    assert len(tokens) == document["stats"]["emitted"] == sum(len(r["emitted_ids"]) for r in document["rounds"])
    alone = CliRunner().invoke(app, ["trace", "--target", folders["target"]])
    assert alone.exit_code == 1 and "must be given together" in alone.output
