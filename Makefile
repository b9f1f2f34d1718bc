# make demo    a demonstration: log lines lead to a 403 at a real HAProxy
# make test    everything that must pass: format, lints, unit tests, tests with real HAProxy
# make test-chart   the Helm chart: lint, schemas, refused values, consistency; the systemd units; the workflows
# make test-page    the page in a real Chromium (part of make test)
# make test-api     the API against its OpenAPI document, with schemathesis (part of make test)
# make test-images  the image, the Compose example and the Debian package, with podman (part of make test)
# make packaging    the same with release builds, and the chart and the units
# make image-stage  the image from sources, for amd64 and arm64 (two release builds: 20 minutes)
# make sbom         the dependencies of the binary, as CycloneDX, in target/sbom
# make reproducible checks that two release builds in different folders give the same bytes (20 minutes)
# make bench   the benchmarks
# make fuzz    every fuzz target for a minute (FUZZ_SECONDS=60)
# make soak    random faults: a simulated day, then a real cluster for SOAK_SECONDS=600; SOAK_SEED=N repeats a run; needs root
# make lint    format, clippy, shellcheck
# make deny    check the dependency tree with cargo-deny (part of make test)
# make clean   remove build results, and downloads for the tests

CARGO ?= cargo
SCRIPTS := demo/run cluster-tests/haproxy-versions scripts/install-test-tools scripts/fuzz scripts/test-api scripts/test-page \
	scripts/test-packaging scripts/build-deb scripts/deny scripts/sbom scripts/reproducible deploy/compose/try .ci/run

STATIC := target/x86_64-unknown-linux-musl/release/banmesh

.PHONY: help demo test tools lint deny build unit haproxy test-api test-chart test-page page-tools test-images packaging image-stage sbom \
	reproducible bench fuzz soak clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo:
	@demo/run

test: tools page-tools lint haproxy
	@$(MAKE) --no-print-directory -j2 deny unit
	@$(MAKE) --no-print-directory test-api test-chart test-images

# The programs that the tests need in addition to Rust. As root it installs them, otherwise it lists those that are missing.
tools:
	@scripts/install-test-tools
	@scripts/test-packaging tools

# The pinned npm packages for the tests of the page, which `unit` runs with the others.
page-tools:
	@scripts/test-page tools

test-page: build
	@scripts/test-page

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@if command -v shellcheck >/dev/null; then echo shellcheck $(SCRIPTS); shellcheck -x $(SCRIPTS); \
	else echo 'shellcheck: skipped, not installed'; fi

# Runs in parallel with the tests, with a low priority, because cargo-deny must be built first.
deny:
	@nice -n 19 scripts/deny

# Downloads several HAProxy versions to .haproxy/. Exit code 3 means that some are unavailable; the tests decide whether that matters.
haproxy:
	@cluster-tests/haproxy-versions || [ $$? -eq 3 ]

build:
	$(CARGO) build --locked --bin banmesh

# Unit tests and the tests of whole processes, which run target/debug/banmesh. Those mostly wait, so one more than the number of
# processors runs at once.
unit: build
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		set -x; $(CARGO) test --locked --workspace --doc --quiet && $(CARGO) nextest run --locked --workspace --no-fail-fast --test-threads $$(($$(nproc) + 1)); \
	else \
		set -x; $(CARGO) test --locked --workspace --no-fail-fast; \
	fi

test-api: build
	@scripts/test-api

test-chart: build
	@scripts/test-packaging workflows chart systemd

test-images: build
	@scripts/test-packaging image compose units deb

packaging: build
	scripts/install-test-tools musl-gcc=musl-tools
	rustup target add x86_64-unknown-linux-musl
	$(CARGO) build --release --locked --bin banmesh --target x86_64-unknown-linux-musl
	BANMESH_STATIC=$(STATIC) scripts/test-packaging

image-stage:
	@scripts/test-packaging stage

sbom:
	@scripts/sbom

reproducible:
	@scripts/reproducible

bench:
	$(CARGO) bench --locked --workspace
	$(CARGO) build --locked --release --workspace --bins
	target/release/mesh_bench

fuzz:
	@scripts/fuzz

soak: tools build
	BANMESH_SIMULATED_HOURS=24 BANMESH_SEED=$${SOAK_SEED:-$$(date +%s)} \
		$(CARGO) test --locked -p banmesh-core --test crdt_model -- --nocapture hours_of_random_faults
	$(CARGO) run --locked --quiet -p cluster-tests --bin soak

clean:
	$(CARGO) clean
	rm -rf .haproxy .prometheus .venv .venv-api tests/page/node_modules
	@podman rmi -f localhost/banmesh-debian:test >/dev/null 2>&1 || true
