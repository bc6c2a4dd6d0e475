"""`speculation` in a notebook: the text, coloured by who wrote it."""

import copy
import pickle
import re
from html import unescape

import pytest
import torch
from conftest import drafter, failfast, plain, prompt, target
from scripted import ScriptedDrafter
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import hf_failfast
from hf_failfast.decoding.stats import RoundRecord, SpecDecodingStats
from hf_failfast.decoding.written import KINDS, Written

WORDS = ["<end>", "<script>alert(1)</script>", " a&b", "\n", " plain"]
OPTIONS = {"max_new_tokens": 24, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<end>"))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


def spans(html: str) -> list[tuple[str, str]]:
    """(kind, text) of every token."""
    kinds = {style: kind for kind, (_, style) in KINDS.items()}
    text = html.partition("</div>")[0]
    return [
        (kinds[style], unescape(word)) for style, word in re.findall(r'<span style="(.*?)">(.*?)</span>', text, re.S)
    ]


def test_each_token_has_its_writers_colour(words: PreTrainedTokenizerFast) -> None:
    """Accepted tokens, then the target's own; a round without a draft has a colour of its own; text stays text."""
    stats = SpecDecodingStats(written=Written(torch.tensor([1, 2, 3, 4, 2, 0]), words))
    stats.observe(RoundRecord(3, 2, 3, 1))
    stats.observe(RoundRecord(0, 0, 1, 0))
    stats.observe(RoundRecord(2, 2, 2, 1))  # the text ends inside the draft
    html = stats._repr_html_()
    assert spans(html) == [
        ("accepted", WORDS[1]),
        ("accepted", WORDS[2]),
        ("bonus", WORDS[3]),
        ("plain", WORDS[4]),
        ("accepted", WORDS[2]),
        ("accepted", ""),
    ]
    assert "<script" not in html and "4 of 5 drafted tokens accepted" in html
    assert all(meaning in html for meaning, _ in KINDS.values())
    assert "tokenizer=" not in html


def test_the_readers_own_colours_stay() -> None:
    """No style sets a colour for text, or a background that hides it: readable on dark as on light."""
    for _, style in KINDS.values():
        assert re.search(r"background:rgba\(\d+,\d+,\d+,\.[1-3]\d?\)", style)
        assert not re.search(r"(?<![-\w])color:", style)


def test_of_a_call(tokenizer: PreTrainedTokenizerFast) -> None:
    """The tokens and their writers are those of the call; without a tokenizer the ids stand for the words."""
    reference = plain(target("llama"), prompt(9), max_new_tokens=60)
    call = OPTIONS | {"max_draft_length": 6}
    output = failfast(target("llama"), prompt(9), ScriptedDrafter(reference, [3, 0, 6]), tokenizer=tokenizer, **call)
    found = spans(output.speculation._repr_html_())
    assert "".join(text for _, text in found) == tokenizer.decode(output.sequences[0, 9:], skip_special_tokens=True)
    kinds = [kind for kind, _ in found]
    assert kinds[:5] == ["accepted"] * 3 + ["bonus"] * 2
    assert kinds.count("accepted") == output.speculation.accepted
    output = failfast(target("llama"), prompt(9), ScriptedDrafter(reference, [3, 0, 6]), **call)
    html = output.speculation._repr_html_()
    assert [int(text) for _, text in spans(html)] == output.sequences[0, 9:].tolist()
    assert "tokenizer=tokenizer" in html


def test_a_batch_shows_its_counts() -> None:
    ids = torch.cat([prompt(9), prompt(9)])
    output = failfast(target("llama"), ids, drafter("canvas_shift"), **OPTIONS)
    assert output.speculation.written is None
    assert spans(output.speculation._repr_html_()) == [] and "48 tokens in" in output.speculation._repr_html_()


def test_copies_and_sums(tokenizer: PreTrainedTokenizerFast) -> None:
    """Statistics with their text can be copied and pickled; a sum of several has no text."""
    stats = failfast(target("llama"), prompt(9), drafter("canvas_shift"), tokenizer=tokenizer, **OPTIONS).speculation
    html = stats._repr_html_()
    assert copy.deepcopy(stats)._repr_html_() == pickle.loads(pickle.dumps(stats))._repr_html_() == html
    assert hf_failfast.SpecDecodingStats.total([stats, stats]).written is None
    assert "written" not in repr(stats) and "written" not in stats.as_dict()
