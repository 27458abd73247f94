# make demo: try it. make test: the whole suite. Both install what is missing.

CARGO := $(shell command -v cargo || echo $(HOME)/.cargo/bin/cargo)
# Seconds for which each fuzz target runs.
FUZZ_SECONDS ?= 300
# Seconds for which the soak runs, and a seed that repeats its choices (none: a random one).
export SOAK_SECONDS ?= 1800
export SOAK_SEED ?=

.PHONY: build demo test lint fuzz soak bench bench-checks bench-core autobahn clean

build:
	tools/install build
	$(CARGO) build --release --locked

demo: build
	target/release/espocrm-websocket demo

test:
	tools/install test
	$(CARGO) build --release --locked
	$(CARGO) test --locked

lint:
	tools/install lint
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	$(CARGO) deny --locked check bans licenses sources

# The stable toolchain has what libFuzzer needs, behind a switch.
fuzz: export RUSTC_BOOTSTRAP = 1
fuzz:
	tools/install fuzz
	for target in $$(ls fuzz/seeds); do \
		mkdir -p fuzz/corpus/$$target && \
		$(CARGO) fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=8192 -print_final_stats=1 || exit 1; \
	done

soak:
	tools/install test
	$(CARGO) bench --locked --bench soak

bench:
	tools/install test
	$(CARGO) bench --locked --bench footprint

bench-checks:
	tools/install test
	$(CARGO) bench --locked --bench checks

bench-core:
	tools/install build
	$(CARGO) bench --locked --bench core

autobahn:
	tools/install autobahn
	tools/autobahn

clean:
	$(CARGO) clean
