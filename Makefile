# make demo: try it. make check: the fast checks. make test: the whole suite. make deb, make rpm: packages. All install missing tools.

# Finds a cargo that is new enough. Release builds get the flags of the packages, all others none: plain cargo shares their artifacts.
CARGO := tools/cargo
# Seconds for each fuzz target.
FUZZ_SECONDS ?= 300
# Seconds for the soak test.
export SOAK_SECONDS ?= 1800
# Seeds for each simulation in make check. Without it they run as many as make test.
CHECK_SEEDS ?= 40
# SEED=N: repeats the choices of a simulation or of the soak test.
# REBUILD=1: make check-packages also builds the last commit again and compares the packages.

SCRIPTS = .ci/run $(filter-out tools/autobahn-summary,$(wildcard tools/*)) $(wildcard packaging/deb/*.p*)

.PHONY: build demo check test lint fuzz soak bench bench-checks bench-core autobahn packages deb rpm check-packages clean

build:
	tools/install build
	$(CARGO) build --release --locked

demo: build
	target/release/espocrm-websocket demo

# Formatting, clippy, unit tests, both simulations with fewer seeds, and the tests of boundaries, settings and packaging.
check:
	tools/install check
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	SEEDS=$(CHECK_SEEDS) $(CARGO) test --locked --lib --test boundary --test packaging --test settings --test simulation

test:
	tools/install test
	$(CARGO) build --release --locked
	$(CARGO) test --locked

# Installs the packages in containers and tests them. PACKAGES=DIR tests those in another directory.
.PHONY: test-packages
test-packages: $(if $(PACKAGES),,deb rpm)
	tools/container test

# Runs unit tests and end-to-end tests in a minimal Debian with a booted systemd. TESTS selects some of them.
RELEASE ?= trixie
.PHONY: test-suite
test-suite:
	tools/container suite $(RELEASE) $(TESTS)

# Tests the Docker Compose setup in docs/install.md with a Docker engine of its own.
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
