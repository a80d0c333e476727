# `make run` shows nodewall on a simulated GPU node, `make test` runs everything. Both do all their own set-up.

CARGO ?= cargo

.PHONY: all build run test test-systemd test-vm test-reproducible packages lint test-apiserver test-scale test-rbac test-roce oracle bench clean setup

all: build

setup:
	@scripts/setup.sh

build: setup
	$(CARGO) build --release

# In throw-away network namespaces, so it takes root; building does not.
run: build
	@if [ "$$(id -u)" -eq 0 ]; then exec python3 demo/run.py --binary target/release/nodewall; \
	else exec sudo python3 demo/run.py --binary target/release/nodewall; fi

test: setup
	scripts/test.sh

# The .deb and the .rpm, in target/packages; ARCH=arm64 for Grace.
packages: setup
	scripts/setup-packages.sh $(filter arm64,$(ARCH))
	packaging/build.sh $(if $(ARCH),--arch $(ARCH))

# What is no Rust: packages, units, shell scripts, dependencies.
lint: setup
	scripts/setup-packages.sh lint
	$(CARGO) build
	scripts/lint.sh --all target/debug/nodewall

# Whether two builds in two directories give the same bytes, program and packages: two builds of the program, of many minutes each.
test-reproducible: setup
	scripts/setup-packages.sh
	packaging/reproduce.sh

# The packages on a real systemd, as root on Debian, in containers (systemd-nspawn); a minute or two.
test-systemd: setup
	$(CARGO) build
	tests/systemd/run.sh nspawn target/debug/nodewall --jobs 3

# The same in virtual machines with Debian's own kernel, and RDMA between two of them; software emulation takes half an hour.
test-vm: build
	tests/systemd/run.sh vm target/release/nodewall
	tests/vm/roce.sh target/release/nodewall

# The definitions of our objects, and our source of objects, with a real API server of Kubernetes, which is built once (some minutes, 3 GB
# for the time) and kept in ~/.cache/nodewall.
test-apiserver: setup
	$(CARGO) build
	programs=$$(tests/apiserver/build.sh) && python3 tests/apiserver/run.py --programs "$$programs" --nodewall target/debug/nodewall && \
		python3 tests/apiserver/follow.py --programs "$$programs" --nodewall target/debug/nodewall

# A cold start beside a real API server with 10,000 objects, of which 1,000 are for this node, as root; then what nothing costs.
test-scale: build
	programs=$$(tests/apiserver/build.sh) && python3 tests/apiserver/scale.py --programs "$$programs" --nodewall target/release/nodewall

# The rights and the admission policy of packaging/kubernetes in real API servers, of Kubernetes 1.20 and 1.36, which are built once (twenty
# minutes, 4 GB for the time) and kept in ~/.cache/nodewall.
test-rbac: setup
	$(CARGO) build
	programs=$$(tests/apiserver/build.sh) && kube=$$(tests/apiserver/build-kube.sh) && \
		python3 tests/apiserver/admission.py --programs "$$programs" && \
		python3 tests/apiserver/rbac.py --programs "$$kube" --etcd "$$programs" --nodewall target/debug/nodewall

# RDMA between two virtual machines with Soft-RoCE, as root, on Debian; some minutes. tests/vm/setup.sh gets qemu and the rest by apt.
test-roce: build
	tests/vm/roce.sh target/release/nodewall

# The long run of tests/oracle.rs, as root: NODEWALL_PAIRS=N pairs of policy and packet (a million) with fresh seeds.
oracle: setup
	scripts/oracle.sh

# Ratios against the nft program and hand-written rules in the same run; the figures of the README.
bench: setup
	$(CARGO) bench --bench apply
	$(CARGO) bench --bench packet
	$(CARGO) bench --bench daemon
	$(CARGO) bench --bench drift
	$(CARGO) bench --bench revoke
	$(CARGO) bench --bench scale
	$(CARGO) bench --bench fleet
	$(CARGO) bench --bench traffic

clean:
	$(CARGO) clean
