"""The target as a writer: its answers to prompts, and the hidden states that predicted them."""

from itertools import cycle
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import DataConfig
from .shards import Example

TURN = "\x1e"  # ASCII's record separator; the turns are a user's, the assistant's, the user's, ...
_MARK = "\u0001question\u0001"  # stands for the user's text while the chat template is taken apart
TEXT_PROMPT_TOKENS = 16  # of a text: they tell it from others, and are not trained on


class Writer:
    """Turns prompts into examples, in batches."""

    def __init__(self, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        self.target, self.tokenizer, self.config = target, tokenizer, config
        eos = target.generation_config.eos_token_id
        self.eos = {eos} if isinstance(eos, int) else set(eos or [])

    @property
    def has_template(self) -> bool:
        return self.tokenizer.chat_template is not None

    def user_prefix(self) -> str:
        """What the chat template writes before the user's text; the BOS token where there is no template."""
        if not self.has_template:
            return self.tokenizer.bos_token or ""
        return self._chat(_MARK).partition(_MARK)[0]

    def prompt(self, question: str) -> str:
        """The text the target answers; TURN stands between the turns of a conversation."""
        return self._chat(question) if self.has_template else self.user_prefix() + question

    def prompt_ids(self, text: str) -> list[int]:
        """The ids that tell one prompt from another: all of a question, the beginning of a text."""
        if self.config.records == "texts":
            return self._text_ids(text)[:TEXT_PROMPT_TOKENS]
        return list(self.tokenizer(self.prompt(text), add_special_tokens=False)["input_ids"])

    def is_too_long(self, text: str) -> bool:
        return self.config.records == "prompts" and len(self.prompt_ids(text)) > self.config.prompt_tokens

    def examples(self, texts: list[str], seed: int) -> list[Example]:
        """What the drafter learns from: answers to the texts (greedy, then sampled ones), or the texts themselves."""
        if self.config.records == "texts":
            return [example for example in map(self._read, texts) if example is not None]
        found = self.greedy_answers(texts, self.config.answer_tokens)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for _ in range(self.config.sampled_answers):
                # Without truncation: the target's own distribution.
                sampling = {"do_sample": True, "temperature": self.config.answer_temperature, "top_k": 0, "top_p": 1.0}
                found += self._answers(texts, self.config.answer_tokens, sampled=True, **sampling)
        return found

    def greedy_answers(self, texts: list[str], tokens: int) -> list[Example]:
        """Of at most `tokens` tokens, in the order of the texts."""
        return self._answers(texts, tokens, sampled=False, do_sample=False)

    def _chat(self, prompt: str) -> str:
        roles = cycle(("user", "assistant"))
        turns = [{"role": role, "content": text} for role, text in zip(roles, prompt.split(TURN), strict=False)]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def _text_ids(self, text: str) -> list[int]:
        ids = self.tokenizer((self.tokenizer.bos_token or "") + text, add_special_tokens=False)["input_ids"]
        return list(ids)[: self.config.answer_tokens]

    @torch.inference_mode()
    def _read(self, text: str) -> Example | None:
        """A text as it is; None if it is too short to learn from."""
        tokens = torch.tensor(self._text_ids(text))
        length = min(TEXT_PROMPT_TOKENS, len(tokens) // 2)
        if length == 0:
            return None
        if not self.config.store_states:
            return Example(tokens, length, None)
        states = self.target.get_decoder()(tokens[None].to(self.target.device), use_cache=False).last_hidden_state[0]
        return Example(tokens, length, states[length - 1 : -1].to("cpu", torch.bfloat16))

    def _answers(self, questions: list[str], tokens: int, sampled: bool, **sampling: Any) -> list[Example]:
        """Answers in batches of similar prompt length, with the states that chose every token."""
        prompts = [self.prompt_ids(text) for text in questions]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        examples: dict[int, Example] = {}
        for start in range(0, len(order), self.config.batch_size):
            batch = order[start : start + self.config.batch_size]
            texts = [self.prompt(questions[i]) for i in batch]
            new, hidden = self.generate(texts, tokens, **sampling)
            for row, i in enumerate(batch):
                length = self.answer_length(new[row].tolist())
                sequence = torch.cat([torch.tensor(prompts[i]), new[row, :length].cpu()])
                states = hidden[row, :length].cpu() if self.config.store_states else None
                examples[i] = Example(sequence, len(prompts[i]), states, sampled)
        return [examples[i] for i in range(len(prompts))]

    def answer_length(self, row: list[int]) -> int:
        return next((i + 1 for i, token in enumerate(row) if token in self.eos), len(row))

    @torch.inference_mode()
    def generate(self, texts: list[str], tokens: int, **sampling: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """New tokens [batch, at most `tokens`] and the normalised final state that predicted each of them."""
        states: list[torch.Tensor] = []
        decoder = self.target.get_decoder()
        # A hook costs nothing; a second forward over the answers would cost half as much as writing them.
        handle = decoder.register_forward_hook(lambda *call: states.append(call[2].last_hidden_state[:, -1].clone()))
        try:
            inputs = self.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
            inputs = {k: inputs[k].to(self.target.device) for k in ("input_ids", "attention_mask")}
            # The static cache never copies old keys: twice the dynamic one's speed at this batch size on a CPU.
            output = self.target.generate(
                **inputs,
                **sampling,
                max_new_tokens=tokens,
                cache_implementation="static",
                pad_token_id=self.tokenizer.pad_token_id,
            )
        finally:
            handle.remove()
        new = output[:, inputs["input_ids"].shape[1] :]
        return new, torch.stack(states, dim=1)[:, : new.shape[1]].to(torch.bfloat16)
