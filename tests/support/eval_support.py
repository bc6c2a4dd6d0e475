"""A target, a drafter and an autoregressive draft model of two layers each, on disk, with a tokenizer made here."""

import json
from pathlib import Path
from typing import Any

from conftest import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
SPECIAL = ("<eos>", "<pad>", "<mask>")


def save_models(folder: Path) -> dict[str, str]:
    """Folders by role. The drafter has the target's weights, so that the first token of a draft is always right."""
    tokenizer = _tokenizer()
    sizes = {"vocab_size": 264, "hidden_size": 64, "max_position_embeddings": 1024}
    target = tiny_model("llama", **sizes, initializer_range=0.4, eos_token_id=256, pad_token_id=257)
    for role in ("target", "drafter", "assistant"):
        target.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    path = folder / "drafter" / "config.json"
    spec = {"attention": "causal_canvas", "shift": 1, "mask_token_id": 258, "chunk_length": 4, "max_draft_length": 12}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"failfast": spec}))
    return {role: str(folder / role) for role in ("target", "drafter", "assistant")}


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
    tokenizer.add_tokens(["<mask>"], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def evaluate_tasks(model: Any, tasks: list[str], **arguments: Any) -> dict[str, Any]:
    """lm-eval's results of our tasks, without the 14,000 stock ones."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from hf_failfast.eval.paths import TASKS

    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=arguments.pop("metadata", None))
    arguments = {"limit": 3, "gen_kwargs": {"max_gen_toks": 16}, "bootstrap_iters": 0, "device": "cpu"} | arguments
    return simple_evaluate(model=model, tasks=tasks, task_manager=manager, **arguments)
