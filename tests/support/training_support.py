"""A tiny target, its tokenizer, and random examples for the tests of training."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hf_failfast.training.data.shards import Example
from hf_failfast.training.export import Provenance

SPECIALS = ["<pad>", "<s>", "<user>", "<end>", "<assistant>"]
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
VOCABULARY = len(SPECIALS) + len(CHARACTERS)
TEMPLATE = (
    "{% for turn in messages %}<user>{{ turn['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PROVENANCE = Provenance(
    "tiny", "apache-2.0", "hf-failfast train", {"settings": {"source": "random tokens"}, "shards": []}
)


def tiny_tokenizer(template: str | None = TEMPLATE, characters: Sequence[str] = CHARACTERS) -> PreTrainedTokenizerFast:
    """One token per character; `characters` in the order of their ids."""
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *characters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<end>",
        extra_special_tokens=SPECIALS[2:],
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_target(model_type: str = "llama", layers: int = 4, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    config = AutoConfig.for_model(model_type, **sizes, **heads, **ids, initializer_range=0.3, **options)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def text_and_image_target(**options: Any) -> PreTrainedModel:
    """Gemma 3 as it is published from 4B on: its text model is a part beside one that sees images."""
    text = tiny_target("gemma3_text", **options).config.to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision | {"image_size": 32, "patch_size": 16}, eos_token_id=3
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def talkative_target() -> PreTrainedModel:
    """A target that ends its turns early: a fifth of the characters count as end of turn."""
    target = tiny_target(layers=1)
    target.generation_config.eos_token_id = [3, *range(80, 100)]
    return target


def random_examples(count: int, hidden_size: int = 32, sampled: bool = False) -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    examples = []
    for i in range(count):
        tokens = torch.randint(5, VOCABULARY, (14 + i % 5,), generator=generator)
        states = torch.randn(len(tokens) - 4, hidden_size, generator=generator)
        examples.append(Example(tokens, 4, states, sampled))
    return examples


def greedy_answers(count: int, length: int) -> list[Example]:
    """Of the tiny target, whose own answers a drafter learns well in a few steps."""
    target = tiny_target()
    examples = []
    for seed in range(count):
        prompt = torch.randint(5, VOCABULARY, (1, 6), generator=torch.Generator().manual_seed(seed))
        tokens = target.generate(prompt, do_sample=False, max_new_tokens=length)[0]
        examples.append(Example(tokens, 6, None))
    return examples
