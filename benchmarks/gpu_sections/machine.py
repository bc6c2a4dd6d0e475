"""The device, and models of the sizes that matter on it."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_failfast.engine.cuda.capture import CudaGraphs, Outputs

SHAPES: dict[str, dict[str, int | bool]] = {
    "small": {"hidden": 1536, "layers": 4, "heads": 12, "kv_heads": 2, "inter": 8960, "vocab": 2000, "tied": False},
    "1.5B": {"hidden": 1536, "layers": 28, "heads": 12, "kv_heads": 2, "inter": 8960, "vocab": 151936, "tied": True},
    "7B": {"hidden": 3584, "layers": 28, "heads": 28, "kv_heads": 4, "inter": 18944, "vocab": 152064, "tied": False},
    "14B": {"hidden": 5120, "layers": 48, "heads": 40, "kv_heads": 8, "inter": 13824, "vocab": 152064, "tied": False},
    "32B": {"hidden": 5120, "layers": 64, "heads": 40, "kv_heads": 8, "inter": 27648, "vocab": 152064, "tied": False},
}
TINY = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "inter": 96, "vocab": 500, "tied": False}


class Repeated(CudaGraphs):
    """Stands for graphs where there is no GPU: a replay runs the forward again."""

    def is_available(self, device: torch.device) -> bool:
        return True

    def new_arena(self, device: torch.device) -> Any:
        return None

    def capture(self, forward: Callable[[], Outputs], arena: Any) -> tuple[Callable[[], None], Outputs]:
        outputs = forward()

        def replay() -> None:
            for output, new in zip(outputs, forward(), strict=True):
                output.copy_(new)

        return replay, outputs


@dataclass
class Machine:
    device: torch.device
    deadline: float
    bandwidth: float = 0.0  # bytes per second

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def context(self) -> int:
        return 1024 if self.is_gpu else 64

    def graphs(self) -> CudaGraphs:
        return CudaGraphs() if self.is_gpu else Repeated()

    def model(self, name: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
        """A Qwen2 of the shape, random weights made on the device."""
        shape = SHAPES[name] if self.is_gpu else TINY
        options = {
            "hidden_size": shape["hidden"],
            "num_hidden_layers": shape["layers"],
            "num_attention_heads": shape["heads"],
            "num_key_value_heads": shape["kv_heads"],
            "intermediate_size": shape["inter"],
            "vocab_size": shape["vocab"],
            "tie_word_embeddings": shape["tied"],
        }
        return self.model_of("qwen2", options, dtype)

    def model_of(
        self, model_type: str, options: dict[str, Any], dtype: torch.dtype = torch.bfloat16
    ) -> PreTrainedModel:
        """A model of any family, random weights made on the device."""
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        config = AutoConfig.for_model(model_type, max_position_embeddings=32768, **ids, **options)
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()

    def seconds(self, function: Callable[[], Any], repeats: int = 20) -> float:
        """Median wall-clock seconds of a call, the wait for the device included."""
        times = []
        for _ in range(repeats + 3 if self.is_gpu else 1):
            self.wait()
            start = perf_counter()
            function()
            self.wait()
            times.append(perf_counter() - start)
        times = sorted(times[3:] or times)
        return times[len(times) // 2]

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()


def measure_machine(machine: Machine) -> dict[str, Any]:
    """Bytes per second of a large copy, read and written; the floors below are bytes over this."""
    source = torch.empty(2**30 if machine.is_gpu else 2**20, dtype=torch.uint8, device=machine.device)
    copy = torch.empty_like(source)
    machine.bandwidth = 2 * source.numel() / machine.seconds(lambda: copy.copy_(source))
    return {"bandwidth_tb_s": machine.bandwidth / 1e12}
