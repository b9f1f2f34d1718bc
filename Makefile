# make demo    see it work: log lines become a 403 at a real HAProxy
# make test    lints, unit tests, tests with real HAProxy and with clusters of real processes
# make test-slow  tests that take long: bulk imports, joins of large tables, every forged line, states that need a minute to show; and those of `make test` with HAProxy 3.0 and 3.2
# make test-stress  tests that need the processors for themselves: throughput, bursts, counted wrong answers while an agent fails
# make test-packaging  what ships banmesh: all targets below up to `deny`, `doc` and `fuzz-check`; continuous integration runs this, `make test`, `make test-slow` and `make test-stress`
# make test-chart   the Helm chart: lint, schemas, refusals, its pods as processes; the systemd units; the workflows
# make test-page    the page in a real Chromium
# make test-api     the API by its OpenAPI document, with schemathesis
# make test-images  the image, the Compose example, the units and the Debian package, with podman
# make test-walkthroughs  the commands and outputs of docs/walkthrough-*.md, in minimal Debian systems and in a stand-in for Kubernetes
# make test-readme  the commands in README.md and the documents that follow it, in a minimal Debian with systemd
# make deny    what may be in the dependency tree, with cargo-deny
# make packaging    the images, the package, the chart and the units with release builds
# make image-stage  the image from sources, for amd64 and arm64 (two release builds: 20 minutes)
# make sbom         the dependencies of the binary, as CycloneDX, in target/sbom
# make reproducible checks that two release builds in different folders give the same bytes (20 minutes)
# make bench   the benchmarks
# make fuzz    every fuzz target for a minute (FUZZ_SECONDS=60)
# make fuzz-check  compiles the fuzz targets
# make soak    random faults: simulated tables, simulated clusters and a real cluster, SOAK_SECONDS=600 each; SOAK_SEED=N repeats; needs root
# make simulate  simulated clusters for SOAK_SECONDS=600, then those with planted faults
# make lint    format, clippy, shellcheck
# make doc     the documentation of the crates, without warnings
# make clean   remove what was built, and what was fetched for the tests

CARGO ?= cargo
SCRIPTS := demo/run demo/ssh cluster-tests/haproxy-versions cluster-tests/mail-servers scripts/picture-cli scripts/disturb scripts/install-test-tools scripts/fuzz scripts/test-api scripts/test-page \
	scripts/test-packaging scripts/build-deb scripts/deny scripts/sbom scripts/reproducible deploy/compose/try .ci/run

# What clippy and rustdoc check has a folder of its own, so that cargo's lock does not make builds and tests wait for it.
CHECKED := target/checked
STATIC := target/x86_64-unknown-linux-musl/release/banmesh

.PHONY: help demo test test-slow test-stress test-packaging packaging-parts tools packaging-tools page-tools lint doc build unit haproxy test-api test-chart test-page \
	test-images test-readme test-walkthroughs packaging-deb packaging-walkthroughs deb-tool deny packaging image-stage sbom reproducible bench fuzz fuzz-check soak simulate clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo:
	@demo/run

# Clippy checks every dependency anew, which takes minutes from a clean clone. So it runs at low priority beside the tests, which
# leave processors idle while crates compile alone and while tests wait.
test: tools haproxy
	$(CARGO) fmt --all --check
	@mkdir -p target; nice -n 19 $(MAKE) --no-print-directory lint >target/lint.log 2>&1 & lint=$$!; \
	trap 'kill $$lint 2>/dev/null' EXIT; trap 'exit 130' INT TERM; \
	$(MAKE) --no-print-directory unit; failed=$$?; \
	echo 'lint: waiting for clippy'; wait $$lint || { failed=$$?; cat target/lint.log; }; \
	[ $$failed -ne 0 ] || echo 'lint: passed'; exit $$failed

# Documentation, cargo-deny and cargo-deb, which must be compiled first, at low priority while the other tests wait for containers.
test-packaging: packaging-tools page-tools haproxy build
	@$(MAKE) --no-print-directory -j5 deny doc fuzz-check deb-tool packaging-parts
	@$(MAKE) --no-print-directory -j2 packaging-deb packaging-walkthroughs

# These mostly wait for containers, and for each other only while the package is built.
packaging-deb: build deb-tool
	@scripts/test-packaging deb

packaging-walkthroughs: build deb-tool
	@scripts/test-packaging walkthroughs

packaging-parts: build
	@scripts/test-api
	@scripts/test-page
	@scripts/test-packaging workflows chart pods systemd image compose readme units

# Debian packages that the tests run. As root they are installed; otherwise the missing ones are named.
tools:
	@scripts/install-test-tools

packaging-tools:
	@scripts/install-test-tools packaging
	@scripts/test-packaging tools

# npm packages for the tests of the page, pinned.
page-tools: packaging-tools
	@scripts/test-page tools

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --target-dir $(CHECKED) --locked --workspace --all-targets --test chart --test page --test walkthroughs -- -D warnings
	@if command -v shellcheck >/dev/null; then echo shellcheck $(SCRIPTS); shellcheck -x $(SCRIPTS); \
	else echo 'shellcheck: skipped, not installed'; fi

doc:
	RUSTDOCFLAGS='-D warnings' nice -n 19 $(CARGO) doc --target-dir $(CHECKED) --locked --workspace --no-deps

# Several HAProxy versions into .haproxy/. Exit code 3 means that some cannot be had; the tests decide whether that matters.
haproxy:
	@cluster-tests/haproxy-versions || [ $$? -eq 3 ]

# Always the whole workspace: another selection of packages has other features of the dependencies, and compiles them anew.
build:
	$(CARGO) build --locked --workspace --bins

# Tests that measure CPU time, open hundreds of connections at once, or count wrong answers while an agent fails. Other tests
# would disturb them, so `make test-stress` runs them one at a time.
STRESS := throughput:: haproxy_stress:: failover:: spop_tls::failover \
	a_panic_of_the_store broken_parts::a_panic broken_parts::a_hang_of broken_parts::a_stalled_part

# Tests that take long: more than about 12 seconds each, or whole modules of such tests. `make test-slow` runs them.
SLOW := a_quoted_address a_header_at_the_beginning blind_states:: bulk:: decisions_of_the_core evidence_of_both_sides fifty_thousand ten_thousand_bans_and a_hundred_thousand mesh_join:: \
	mesh_partition:: mesh_repair:: peers_reload:: mesh_restart:: crowding:: restore:: recipes:: broken_parts::a_node broken_parts::a_hanging \
	every_combination prometheus_accepts_the_alerts postscreen_and_exim_refuse lost_records_and_a_partition observing_changes_no_decision \
	without_lines_about_logins dead_nodes_ hanging_nodes_ a_node_killed_under_load one_ipv6_allocation the_configured_allowlist pages_are_complete the_time_from_a_ban

# `make test` runs with the oldest and the newest HAProxy, and `make test-slow` repeats its tests with those between. The slow ones run
# with the oldest and the newest; `make test-slow MIDDLE=` runs them with all.
BETWEEN := haproxy_3_0:: haproxy_3_2::
MIDDLE ?= $(BETWEEN:%=--skip %)

# Unit tests and the tests of whole processes, which run target/debug/banmesh. Most of these wait most of the time, so several
# run per processor. .config/nextest.toml says which ones need more than one slot.
unit: build
	$(CARGO) test --locked --workspace --doc --quiet
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		set -x; $(CARGO) nextest run --locked --workspace --no-fail-fast --test-threads $$((2 * $$(nproc))) -- $(STRESS:%=--skip %) $(SLOW:%=--skip %) $(BETWEEN:%=--skip %); \
	else \
		set -x; $(CARGO) test --locked --workspace --lib --bins --tests --no-fail-fast -- $(STRESS:%=--skip %) $(SLOW:%=--skip %) $(BETWEEN:%=--skip %); \
	fi

test-slow: tools haproxy build
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		run="nextest run --locked --workspace --no-fail-fast --test-threads $$((2 * $$(nproc)))"; \
	else \
		run='test --locked --workspace --lib --bins --tests --no-fail-fast'; \
	fi; set -ex; \
	$(CARGO) $$run -- $(SLOW) $(MIDDLE); \
	$(CARGO) $$run -- $(BETWEEN) $(STRESS:%=--skip %) $(SLOW:%=--skip %)

test-stress: tools haproxy build
	$(CARGO) test --locked --workspace --test cluster -- --test-threads=1 $(STRESS) $(MIDDLE)

test-api: build
	@scripts/test-api

test-chart: packaging-tools haproxy build
	@scripts/test-packaging workflows chart pods systemd

test-page: page-tools build
	@scripts/test-page

test-images: build
	@scripts/test-packaging image compose units deb

test-readme: build
	@scripts/test-readme

test-walkthroughs: packaging-tools haproxy packaging-walkthroughs

deb-tool:
	@nice -n 19 scripts/test-packaging deb-tool

deny:
	@nice -n 19 scripts/deny

packaging: haproxy build
	scripts/install-test-tools packaging musl-gcc=musl-tools
	rustup target add x86_64-unknown-linux-musl
	$(CARGO) build --release --locked --bin banmesh --target x86_64-unknown-linux-musl
	BANMESH_STATIC=$(STATIC) scripts/test-packaging

image-stage:
	@scripts/test-packaging stage

sbom:
	@scripts/sbom

reproducible:
	@scripts/reproducible

bench: haproxy
	$(CARGO) bench --locked --workspace
	$(CARGO) build --locked --release --workspace --bins
	target/release/mesh_bench
	target/release/places_bench
	target/release/dnsbl_bench
	target/release/counters_bench
	target/release/counters_bench haproxy

fuzz:
	@scripts/fuzz

fuzz-check:
	nice -n 19 $(CARGO) check --quiet --target-dir $(CHECKED) --locked --manifest-path fuzz/Cargo.toml

soak: tools build
	BANMESH_SIMULATED_HOURS=24 BANMESH_SEED=$${SOAK_SEED:-$$(date +%s)} \
		$(CARGO) test --locked -p banmesh-core --test crdt_model -- --nocapture hours_of_random_faults
	BANMESH_PEERS_WORLDS=500 BANMESH_SEED=$${SOAK_SEED:-$$(date +%s)} $(CARGO) test --locked -p banmesh-peers --test mesh_model
	$(CARGO) run --locked --quiet -p simulator -- --first $${SOAK_SEED:-$$(date +%s)000} --time $${SOAK_SECONDS:-600}
	$(CARGO) run --locked --quiet -p cluster-tests --bin soak

# Failing seeds are printed with the command that repeats them.
simulate:
	$(CARGO) run --locked --quiet -p simulator -- --first $${SOAK_SEED:-$$(date +%s)000} --time $${SOAK_SECONDS:-600}
	$(CARGO) run --locked --quiet -p simulator --features planted-faults -- --planted --seeds 1000

clean:
	$(CARGO) clean
	rm -rf .haproxy .mail-servers .prometheus .bouncers .proxies .sshd .fail2ban .venv .venv-api tests/page/node_modules
	@podman rmi -f $$(podman images --quiet localhost/banmesh-debian) >/dev/null 2>&1 || true
