# make demo: try it. make test: the whole suite. make deb, make rpm: packages. All install what is missing.

CARGO := $(shell command -v cargo || echo $(HOME)/.cargo/bin/cargo)
# Seconds for which each fuzz target runs.
FUZZ_SECONDS ?= 300
# Seconds for which the soak runs, and a seed that repeats its choices (none: a random one).
export SOAK_SECONDS ?= 1800
export SOAK_SEED ?=
# REBUILD=1: make check-packages also builds the last commit once more and compares.

# The same sources give the same binary wherever they, cargo's copies of crates and the target directory lie. These flags
# are the same for all targets, since cargo builds everything anew if they change.
comma := ,
MAPPED := $(CURDIR)=espocrm-websocket \
	$(abspath $(or $(CARGO_TARGET_DIR),target))=espocrm-websocket/target \
	$(or $(CARGO_HOME),$(HOME)/.cargo)=cargo
# Rust's own linker on this platform stores code once that is there twice: 2 % of the binary.
FOLDED := $(if $(filter x86_64-unknown-linux-gnu,$(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')),-Clink-arg=-Wl$(comma)--icf=all)
export RUSTFLAGS := $(strip $(RUSTFLAGS) $(FOLDED) $(MAPPED:%=--remap-path-prefix=%))
# For libzmq and ring: besides what Rust does by itself.
HARDENED := -fstack-protector-strong -D_FORTIFY_SOURCE=2
export CFLAGS := $(strip $(CFLAGS) $(HARDENED) $(MAPPED:%=-ffile-prefix-map=%))
export CXXFLAGS := $(strip $(CXXFLAGS) $(HARDENED) $(MAPPED:%=-ffile-prefix-map=%))

SCRIPTS = .ci/run $(filter-out tools/autobahn-summary,$(wildcard tools/*)) $(wildcard packaging/deb/*.p*)

.PHONY: build demo test lint fuzz soak bench bench-checks bench-core autobahn packages deb rpm check-packages clean

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

# docs/install.md's recipe for Docker Compose, by a Docker engine of its own.
.PHONY: test-compose
test-compose:
	CARGO=$(CARGO) tools/compose

lint:
	tools/install lint
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	$(CARGO) deny --locked check bans licenses sources
	shellcheck --severity=warning $(SCRIPTS)

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

packages: deb rpm

deb rpm: build
	tools/install $@
	tools/package $@

check-packages: packages
	tools/install check-packages
	tools/check-packages $(if $(REBUILD),--rebuild)

clean:
	$(CARGO) clean
