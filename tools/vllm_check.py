"""The bundled pair under vLLM's own server, over its HTTP interface: the same answers with and without drafts.

`make test-vllm` runs it in an environment of its own. In float32, where answers are comparable: 32 answers, 16 at a
time, and one request that its client leaves; then answers at 4 streams and at 1. Prints accepted tokens a round and
tokens a second. Exits with 1 if an answer differs.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import urlopen

from openai import OpenAI

from hf_failfast.pairs import smollm2_folder
from hf_failfast.serving.launch import SERVER as SERVER_MODULE

TOPICS = ("bread", "the Moon", "a bicycle", "rain", "a violin", "the heart", "a lighthouse", "chess")
QUESTIONS = (
    "What is the use of {}?",
    "Write three short sentences about {}.",
    "List five words that have to do with {}.",
    "Write a Python dictionary that describes {}.",
)
PROMPTS = [question.format(topic) for topic in TOPICS for question in QUESTIONS]
STREAMS = {16: 32, 4: 8, 1: 3}  # requests at a time, and how many in all
SERVER = ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16", "--max-model-len", "1024"]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "passive",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # so that other processes of the machine do not stop its threads
}


@contextlib.contextmanager
def server(arguments: list[str], log: str, timeout: float = 600) -> Iterator[OpenAI]:
    """A running server of these arguments, on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*arguments, *SERVER, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | ENVIRONMENT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + timeout
        while not _is_up(address):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start: see {log}")
            time.sleep(1)
        yield OpenAI(base_url=f"{address}/v1", api_key="none", timeout=timeout)
    finally:
        process.terminate()
        process.wait(60)


def _is_up(address: str) -> bool:
    try:
        with urlopen(f"{address}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def answer(client: OpenAI, model: str, prompt: str, num_tokens: int) -> tuple[str, int]:
    """The greedy answer and its number of tokens."""
    messages: Any = [{"role": "user", "content": prompt}]
    done = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=num_tokens)
    return done.choices[0].message.content or "", done.usage.completion_tokens if done.usage else 0


def leave(client: OpenAI, model: str) -> None:
    """A request whose client goes after a few tokens."""
    messages: Any = [{"role": "user", "content": "Tell a very long story."}]
    with client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=400, stream=True
    ) as stream:
        for number, _ in enumerate(stream):
            if number == 3:
                return


def counters(client: OpenAI) -> dict[str, float]:
    """vLLM's own counters of speculative decoding."""
    address = str(client.base_url).removesuffix("v1/") + "metrics"
    found: dict[str, float] = {}
    with urlopen(address, timeout=30) as page:
        for line in page.read().decode().splitlines():
            if line.startswith("vllm:spec_decode_num_") and "per_pos" not in line and "_total{" in line:
                found[line.split("_total{")[0].removeprefix("vllm:spec_decode_num_")] = float(line.split()[-1])
    return found


def measure(client: OpenAI, model: str, num_tokens: int) -> dict[str, Any]:
    """Answers to the prompts and tokens a second, by the number of requests at a time."""
    answer(client, model, "Hello", 4)
    answers: list[str] = []
    speeds: dict[int, float] = {}
    for streams, count in STREAMS.items():
        with ThreadPoolExecutor(streams + 1) as pool:
            if streams == max(STREAMS):
                pool.submit(leave, client, model)
            started = time.perf_counter()
            found = list(pool.map(lambda prompt: answer(client, model, prompt, num_tokens), PROMPTS[:count]))
            speeds[streams] = sum(tokens for _, tokens in found) / (time.perf_counter() - started)
        answers += [text for text, _ in found]
    return {"answers": answers, "tokens_per_second": speeds, "counters": counters(client)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--output", default="build/vllm")
    options = parser.parse_args()
    os.makedirs(options.output, exist_ok=True)
    folder = str(smollm2_folder())
    methods = {
        "plain": [sys.executable, "-m", SERVER_MODULE, "--model", folder],
        "drafted": [sys.executable, "-m", "hf_failfast.cli", "serve", folder, "--num-speculative-tokens", "12"],
    }
    results = {}
    for name, arguments in methods.items():
        print(f"{name}: starting the server", flush=True)
        with server(arguments, f"{options.output}/{name}.log") as client:
            results[name] = measure(client, folder, options.max_new_tokens)
    plain, drafted = results["plain"], results["drafted"]
    pairs = list(zip(plain["answers"], drafted["answers"], strict=True))
    differing = sum(first != second for first, second in pairs)
    counts = drafted["counters"]
    rounds = counts.get("drafts", 0)
    summary = {
        "answers": len(pairs),
        "differing": differing,
        "accepted_tokens_per_draft": counts.get("accepted_tokens", 0) / rounds if rounds else 0.0,
        "tokens_per_second": {name: result["tokens_per_second"] for name, result in results.items()},
        "counters": counts,
    }
    with open(f"{options.output}/summary.json", "w") as file:
        json.dump(summary | {"texts": {name: result["answers"] for name, result in results.items()}}, file, indent=2)
    print(json.dumps(summary, indent=2))
    if differing or not rounds:
        sys.exit(1)


if __name__ == "__main__":
    main()
