# make demo: try it. make test: the whole suite. make deb, make rpm: packages. All install what is missing.

# The right cargo, and the flags of a build.
CARGO := tools/cargo
# Seconds for which each fuzz target runs.
FUZZ_SECONDS ?= 300
# Seconds for which the soak runs, and a seed that repeats its choices (none: a random one).
export SOAK_SECONDS ?= 1800
export SEED ?=
# REBUILD=1: make check-packages also builds the last commit once more and compares.

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
	tools/container test

# The unit tests and the end-to-end tests in a minimal Debian with a booted systemd. TESTS names some of them.
RELEASE ?= trixie
.PHONY: test-suite
test-suite:
	tools/container suite $(RELEASE) $(TESTS)

# docs/install.md's recipe for Docker Compose, by a Docker engine of its own.
.PHONY: test-compose
test-compose:
	tools/compose

lint:
	tools/install lint
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	$(CARGO) deny --locked check bans licenses sources
	shellcheck --severity=warning $(SCRIPTS)

fuzz:
	tools/install fuzz
	tools/fuzz $(FUZZ_SECONDS)

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
