# The commands of this repository; `make` lists them. Cargo does the building.

CARGO ?= cargo
# Set PROFILE=release for an optimised build of everything.
PROFILE ?= dev
# Where cargo puts the executables; .cargo/config.toml names the target.
BUILT = $(or $(CARGO_TARGET_DIR),target)/x86_64-unknown-linux-gnu/$(patsubst dev,debug,$(PROFILE))

# The oldest Rust that the crates promise to build with.
MSRV := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

# A kernel and its modules in place of Debian's; the tests run in another directory.
ifdef KERNEL
export KERNEL := $(abspath $(KERNEL))
endif
ifdef MODULES
export MODULES := $(abspath $(MODULES))
endif

# Where the home is read-only, cargo keeps what it fetches with what it builds.
ifndef CARGO_HOME
ifneq ($(shell mkdir -p "$$HOME/.cargo/registry" 2>/dev/null && test -w "$$HOME/.cargo/registry" && echo yes),yes)
export CARGO_HOME := $(abspath $(or $(CARGO_TARGET_DIR),target)/cargo)
endif
endif

# A directory of CPU templates for `make soak`.
ifdef FIRECRACKER_TEMPLATES
export FIRECRACKER_TEMPLATES := $(abspath $(FIRECRACKER_TEMPLATES))
endif

.DEFAULT_GOAL := help
.PHONY: help setup qemu kernel guests rootfs clients readers build demo test soak bench fuzz fuzz-coverage lint api-changes release reproducible sbom deb deb-test clean

help: ## List the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

setup: ## Install what is missing: a C compiler, e2fsprogs, fakeroot, shells and groff for tests (Debian and Ubuntu)
	@resources/setup.sh

qemu: setup ## Fetch the QEMU that the outer VM runs in into target/, once
	@resources/fetch-qemu.sh

kernel: setup ## Fetch Debian 12's cloud kernel into target/, once
	@resources/fetch-kernel.sh bookworm cloud

guests: kernel ## Fetch the other kernels that guests boot, and the tools that they run, once
	@resources/fetch-kernel.sh trixie cloud
	@resources/fetch-kernel.sh bookworm full
	@resources/fetch-kernel.sh trixie full
	@resources/fetch-tools.sh msr-tools linux-cpupower iucode-tool libc6 libcap2

rootfs: setup ## Make a Debian root file system under target/, once
	@resources/make-rootfs.sh

clients: setup ## Make a root file system of the programs that read MSRs under target/, once
	@resources/make-clients.sh

readers: setup ## Fetch what reads exported traces back in the tests: Perfetto's schema and DuckDB, once
	@resources/fetch-readers.sh

# The guests' inits, msr-vmm and its library's examples, which the tests run as they are.
build: setup ## Build everything
	$(CARGO) build --workspace --bins --examples --profile $(PROFILE)

demo: qemu kernel build ## Boot Debian's kernel with MSRs answered in userspace
	@$(BUILT)/demo

test: qemu kernel guests rootfs clients readers build ## All tests; those that need KVM run nested where the host's cannot boot Linux
	$(CARGO) test --workspace --profile $(PROFILE)

soak: qemu guests readers clients build ## What takes too long for every day: guests stopped at any moment, 32 vCPUs, KILLS= kills of the VMM, HOSTILE_SECONDS= of hostile guests, every failing system call, and SNAPSHOTS= snapshots under a write load, Chromium, the CPU templates of FIRECRACKER_TEMPLATES=
	@command -v chromium >/dev/null || resources/setup.sh chromium
	$(CARGO) test -p guest-tests --test trace_readers --profile $(PROFILE) -- --ignored
	$(CARGO) test -p guest-tests --test kvm --profile $(PROFILE) -- --ignored
	$(CARGO) test -p guest-tests --test hostile --profile $(PROFILE) -- --ignored
	HOSTILE_SECONDS=$(or $(HOSTILE_SECONDS),1800) $(CARGO) test -p guest-tests --test hostile --profile $(PROFILE) -- storm::
	HOSTILE_SECONDS=$(or $(HOSTILE_SECONDS),600) $(CARGO) test -p guest-tests --test kvm --profile $(PROFILE) -- life::linux_storm
	KILLS=$(or $(KILLS),25) $(CARGO) test -p guest-tests --test kvm --profile $(PROFILE) -- \
		disk::what_was_fsynced_outlives_a_killed_vmm
	SNAPSHOTS=$(or $(SNAPSHOTS),25) $(CARGO) test -p guest-tests --test kvm --profile $(PROFILE) -- \
		disk::a_guest_with_a_disk_is_carried_on_by_another_process
	SNAPSHOTS=$(or $(SNAPSHOTS),25) $(CARGO) test -p guest-tests --test kvm --profile $(PROFILE) -- \
		life::snapshot_boot

bench: qemu kernel ## All benchmarks
	$(CARGO) build --workspace --bins --release
	$(CARGO) bench --workspace

# Subcommands of cargo that are not part of Rust are installed where they are missing.
.PHONY: cargo-deny cargo-fuzz cargo-semver-checks
cargo-deny cargo-fuzz cargo-semver-checks:
	@$(CARGO) $(@:cargo-%=%) --version >/dev/null 2>&1 || $(CARGO) install --locked $@

# What a fuzzer finds worth keeping goes to target/; the committed corpora are read only.
fuzz: cargo-fuzz ## Run every fuzzer, or those of TARGETS=, for SECONDS= each; needs the nightly toolchain
	@cd fuzz && for target in $(or $(TARGETS),$$(cargo fuzz list --fuzz-dir .)); do \
		mkdir -p ../target/fuzz/$$target && \
		nice -n 19 cargo +nightly fuzz run --fuzz-dir . $$target ../target/fuzz/$$target corpus/$$target -- \
			-max_total_time=$(or $(SECONDS),60) -timeout=30 -rss_limit_mb=1024 -print_final_stats=1 || exit 1; \
	done

fuzz-coverage: ## How much of the code under test the inputs of each fuzzer reach, or those of TARGETS=; needs the nightly toolchain
	@resources/fuzz-coverage.sh $(TARGETS)

lint: cargo-deny ## Formatting, clippy, documentation, licences and known vulnerabilities of the dependencies, oldest Rust, public API, scripts
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	@for crate in msr-filter msr-bus msr-kvm msr-vmm; do \
		$(CARGO) clippy -p $$crate --no-default-features --lib -- --deny warnings || exit 1; \
	done
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --workspace --no-deps
	$(CARGO) deny check licenses bans sources
	@resources/check-advisories.sh
	@rustup toolchain list | grep --quiet '^$(MSRV)' || rustup toolchain install --profile minimal $(MSRV)
	CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),target)/msrv $(CARGO) +$(MSRV) check --locked --workspace --all-targets
	@if tag=$$(git describe --tags --abbrev=0 2>/dev/null); then \
		$(MAKE) --no-print-directory api-changes BASELINE="$$tag"; \
	else \
		echo 'no version has a tag yet, so any change of the public API is allowed; make api-changes BASELINE=COMMIT lists them'; \
	fi
	@command -v shellcheck >/dev/null || resources/setup.sh shellcheck
	shellcheck resources/*.sh .ci/run

api-changes: cargo-semver-checks ## What of the libraries' public API breaks those who used it at BASELINE=COMMIT
	@test -n '$(BASELINE)' || { echo 'api-changes: say BASELINE=COMMIT, or a tag'; exit 2; }
	$(CARGO) semver-checks --baseline-rev '$(BASELINE)' $(addprefix --package ,msr-filter msr-bus msr-kvm msr-trace msr-vmm)

release: ## Build the release executable: the same bytes wherever it is built
	@resources/build-release.sh

reproducible: ## Build it twice in different folders and compare
	@resources/test-reproducible.sh

sbom: ## List what it is made of, crates with versions, licences and checksums, in target/sbom
	@resources/sbom.sh

deb: ## Make a Debian package of msr-vmm under target/debian: command, man pages, completions, models, profiles
	@resources/make-deb.sh

deb-test: ## Install that package in a clean Debian tree (RELEASE=bookworm) and use it there; needs root
	@resources/test-deb.sh $(or $(RELEASE),bookworm)

clean: ## Remove what was built; the fetched kernels stay
	$(CARGO) clean --profile dev
	$(CARGO) clean --profile release
