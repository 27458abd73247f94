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

# The packages, installed in containers. PACKAGES=DIR tests those in there.
.PHONY: test-packages
test-packages: $(if $(PACKAGES),,deb rpm)
	CARGO=$(CARGO) tools/container test

lint:
	tools/install lint
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	$(CARGO) deny --locked check bans licenses sources

fuzz:
	tools/install fuzz
	CARGO=$(CARGO) tools/fuzz $(FUZZ_SECONDS)

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
