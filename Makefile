# Every recipe line can be typed by hand. Cargo runs jobs in parallel by itself, so make does not
# (and keeps its own -j from cargo, which would otherwise look for a jobserver it cannot reach).
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-tests build demo test check bench bench-large faults faults-archs archs matrix mutants wild attack fuzz nvrtc examples fmt clean
.PHONY: dist
.PHONY: gpu-test gpu-bench gpu-sanitize gpu-bundle transformers-test real-models clients
unexport MAKEFLAGS MFLAGS

FIRSTDIFF := $(or $(CARGO_TARGET_DIR),./target)/release/firstdiff

help: ## show this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## install what is missing (cmake, a C++ compiler, libclang); does nothing the second time
	scripts/setup.sh

setup-tests: ## the same, plus what only the tests need (clang, Chromium)
	scripts/setup.sh --tests

build: ## build target/release/firstdiff
	cargo build --release --locked

.PHONY: examples writer
examples: C_ENGINE := $(or $(CARGO_TARGET_DIR),./target)/c_engine
examples: setup ## compile the engine of examples/c_engine to target/c_engine
	mkdir -p $(dir $(C_ENGINE))
	cc -std=c99 -O2 -I include examples/c_engine/engine.c -o $(C_ENGINE) -lm

writer: RUST_WRITER := $(or $(CARGO_TARGET_DIR),./target)/writer
writer: ## build examples/rust_writer, the Rust writer by itself, which needs no compiler but Rust's
	cargo build --release --locked --manifest-path examples/rust_writer/Cargo.toml --target-dir $(RUST_WRITER)

demo: setup ## compare our engine with llama.cpp on the small model, then find a planted fault
	cargo build --release --locked
	@echo
	@echo '== Our engine and llama.cpp on the same prompt: expected to be equal =='
	$(FIRSTDIFF) run
	@echo
	@echo '== The same with a planted fault: expected to be found, exit status 1 =='
	$(FIRSTDIFF) run --fault rope-pairs-interleaved; test $$? -eq 1

test: setup-tests ## run the tests
	cargo test --release --locked

check: setup-tests ## formatting, lints and tests: what CI runs
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- -D warnings
	cargo clippy --release --locked --no-default-features --features writer --lib -- -D warnings
	cargo test --release --locked

dist: setup ## build a wheel, a tarball, SBOM and checksums in target/dist; run the wheel in an empty Debian (root)
	scripts/dist.sh

bench: setup ## measure time and memory of a run, and the cost of firstdiff.h
	cargo bench --locked --bench run
	cargo bench --locked --bench header

bench-large: setup ## models of 8B and of 30B-A3B's shape: time, memory and disk (writes 15 GB to target/bench-large)
	cargo bench --locked --bench large

faults: setup ## plant every fault and check that it is found, blamed and named
	cargo bench --locked --bench faults

faults-archs: setup ## plant faults in llama.cpp itself, for many architectures, and write docs/faults-archs.md
	cargo bench --locked --bench faults-archs

archs: setup ## replay llama.cpp's own tensors of every architecture, and write docs/architectures.md
	cargo bench --locked --bench archs

matrix: setup ## check the kernels with 3 models, 3 prompts, 2 dtypes and 8 variants, as docs/ci.md says
	cargo build --release --locked
	$(FIRSTDIFF) check --config fixtures/check/firstdiff.toml
	$(FIRSTDIFF) check --config fixtures/check/quick.toml --reference fixtures/check/quick.ref.json --baseline fixtures/check/quick.lock.json

mutants: setup ## plant mistakes in the kernels and count those that `kernels check` finds
	cargo bench --locked --bench mutants

wild: setup ## recreate bugs that people reported, diagnose them, and write docs/wild.md
	scripts/wild.sh

attack: setup ## hostile kernels and files, damaged caches, signals, a full disk; writes docs/robustness.md
	cargo bench --locked --bench attack

fuzz: setup ## damage inputs of every reader at random for ten minutes
	cargo bench --locked --bench fuzz

nvrtc: ## compile the kernels with the real NVRTC for sm_80, sm_90 and sm_120; needs no GPU
	scripts/nvrtc.sh

real-models: setup ## compare our engine with llama.cpp on two real models, which are downloaded (570 MB)
	cargo build --release --locked
	scripts/real_models.sh

transformers-test: setup ## record models of transformers; installs torch under target/ (some 5 GB)
	scripts/transformers.sh

clients: setup ## record third-party engines, correct and with planted bugs, and write docs/clients.md
	cargo build --release --locked
	bash -c '. scripts/models.sh && fetch_models'
	scripts/clients/clients.py

client-%: ## the same for one engine: transformers_gguf, two_ranks, candle, llama2_c or vllm
	cargo build --release --locked
	bash -c '. scripts/models.sh && fetch_models'
	scripts/clients/clients.py $*

gpu-test: ## on a GPU: the GPU tests, and the engine's tests with their kernels there
	scripts/gpu.sh test

gpu-bench: ## on a GPU: the tables of docs/performance.md
	scripts/gpu.sh bench

gpu-sanitize: ## on a GPU: every kernel under compute-sanitizer
	scripts/gpu.sh sanitize

gpu-bundle: setup ## write target/gpu-bundle, to do these on a machine without Rust
	scripts/gpu.sh bundle target/gpu-bundle

fmt: ## format the Rust sources
	cargo fmt

clean: ## remove everything that was built
	cargo clean
