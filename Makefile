# SPDX-License-Identifier: Apache-2.0
#
# `make` alone prints the verbs. Everything that is downloaded or built for a
# test cluster is kept in $(KUBE_CILIUM_CACHE).

SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := help

export CGO_ENABLED := 0
export GOFLAGS := -buildvcs=false
export KUBE_CILIUM_CACHE ?= $(HOME)/.cache/kube-cilium

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/kube-cilium/kube-cilium/internal/version.Version=$(VERSION)
CLUSTER ?= demo
WORKERS ?= 2
FAMILY ?= dual
INSTALL_DIR ?= $(HOME)/.local/bin
# What eBPF and its generated code are made with; the packages of a test cluster are in test/cluster/packages.txt.
DEV_PACKAGES := clang-19 llvm-19 libbpf-dev procps git make ipset
BINARIES := cilium-agent cilium-operator cilium-cni
TEST_CLUSTER = $(CURDIR)/bin/test-cluster

##@ General

.PHONY: help
help: ## Show this help.
	@awk 'BEGIN {FS = ":.*##"; printf "Usage:\n  make \033[36m<target>\033[0m\n"} \
	/^[a-zA-Z0-9_-]+:.*?##/ { printf "  \033[36m%-16s\033[0m %s\n", $$1, $$2 } \
	/^##@/ { printf "\n\033[1m%s\033[0m\n", substr($$0, 5) }' $(MAKEFILE_LIST)

##@ A real cluster

.PHONY: up
up: up-says build bin/kubectl-cilium bin/kubectl-hubble test-cluster ## Bring a real cluster up on this machine, on our network, with the demo. CLUSTER=, WORKERS=
	@$(TEST_CLUSTER) up --name $(CLUSTER) --workers $(WORKERS) --cni ours --version $(VERSION)
	@set -e; eval "$$($(TEST_CLUSTER) kubectl-env --name $(CLUSTER))"; export PATH="$(CURDIR)/bin:$$PATH"; \
	kubectl apply -f test/cluster/demo/demo.yaml >/dev/null; \
	kubectl -n demo rollout status deployment/server deployment/client deployment/stranger --timeout=90s >/dev/null; \
	timeout 60 sh -c 'until kubectl get ciliumnodereports -o jsonpath="{.items[*].status.endpoints}" | awk -v "pods=$$(kubectl get pods -A --field-selector spec.hostNetwork=false,status.phase=Running -o name | wc -l)" "{for (i = 1; i <= NF; i++) n += \$$i} END {exit n < pods}"; do sleep 1; done'; \
	set -x; \
	kubectl cilium status --wait --timeout 60s; \
	kubectl -n demo get pods -o wide; \
	kubectl apply -f test/cluster/demo/policy.yaml; \
	{ set +x; } 2>/dev/null; timeout 60 sh -c 'until kubectl -n demo logs deployment/stranger --tail=1 | grep -q exceeded; do sleep 1; done'; set -x; \
	kubectl cilium policy wait only-the-client -n demo; \
	kubectl cilium policy list -n demo; \
	kubectl -n demo logs deployment/client --tail=3; \
	kubectl -n demo logs deployment/stranger --tail=3; \
	kubectl hubble flows -n demo --verdict DROPPED --last 4
	@echo; echo 'To go on: eval "$$($(TEST_CLUSTER) kubectl-env --name $(CLUSTER))" && PATH=$(CURDIR)/bin:$$PATH'; echo 'To end:   make down$(if $(filter-out demo,$(CLUSTER)), CLUSTER=$(CLUSTER))'

.PHONY: up-says
up-says:
	@echo 'building our own programs (the first time some minutes in silence: their modules are fetched and compiled too)'

.PHONY: down
down: test-cluster ## Take the cluster down; nothing is left behind.
	$(TEST_CLUSTER) down --name $(CLUSTER)

.PHONY: status
status: test-cluster ## Show the cluster's addresses and where its kubeconfig is.
	$(TEST_CLUSTER) status --name $(CLUSTER)

##@ Build

.PHONY: build
build: $(BINARIES:%=bin/%) ## Build the agent, the operator and the CNI plugin.

.PHONY: plugins
plugins: bin/kubectl-cilium bin/kubectl-hubble ## Build both kubectl plugins and install them into INSTALL_DIR.
	@mkdir -p $(INSTALL_DIR)
	install -m 0755 bin/kubectl-cilium bin/kubectl-hubble $(INSTALL_DIR)/
	ln -sf kubectl-cilium $(INSTALL_DIR)/kubectl_complete-cilium
	ln -sf kubectl-hubble $(INSTALL_DIR)/kubectl_complete-hubble
	@case ":$$PATH:" in *":$(INSTALL_DIR):"*) ;; *) echo "add $(INSTALL_DIR) to PATH, or kubectl will not find them" >&2;; esac

.PHONY: bin/kubectl-cilium bin/kubectl-hubble
bin/kubectl-cilium bin/kubectl-hubble: bin/%:
	go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./plugins/$*

.PHONY: $(BINARIES:%=bin/%)
$(BINARIES:%=bin/%): bin/%:
	go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

.PHONY: test-cluster
test-cluster:
	@cd test/cluster && go build -trimpath -o $(TEST_CLUSTER) .

.PHONY: images
images: test-cluster ## Write multi-architecture OCI archives of our images to dist/.
	$(TEST_CLUSTER) images --out dist --version $(VERSION)

.PHONY: push
push: test-cluster ## Push our images. REGISTRY=registry.example/team
	@test -n "$(REGISTRY)" || { echo "push: say where: make push REGISTRY=registry.example/team" >&2; exit 1; }
	$(TEST_CLUSTER) images --out dist --version $(VERSION) --push $(REGISTRY)

.PHONY: build-installer
build-installer: test-cluster ## Write dist/install.yaml, everything that config/default installs.
	@mkdir -p dist
	$(TEST_CLUSTER) build
	$$($(TEST_CLUSTER) assets)/kubectl kustomize config/default > dist/install.yaml.new
	mv dist/install.yaml.new dist/install.yaml

##@ Develop

.PHONY: generate
generate: ## Make deepcopy, apply configurations, eBPF objects and their Go again.
	go generate ./...
	go tool controller-gen object applyconfiguration paths=./api/v1alpha1

.PHONY: manifests
manifests: ## Make CRDs from the kinds again.
	go tool controller-gen crd paths=./api/v1alpha1 output:crd:dir=config/crd/bases
	go tool controller-gen rbac:roleName=cilium-operator paths=./controllers/... output:rbac:dir=config/rbac

.PHONY: verify-generated
verify-generated: generate manifests ## Fail when what is committed is not what the sources make.
	git diff --exit-code -- api bpf config internal
	@new=$$(git ls-files --others --exclude-standard -- api bpf config internal); [ -z "$$new" ] || { echo "made, and not committed:" $$new >&2; exit 1; }

.PHONY: fmt
fmt: ## Format Go.
	gofmt -w $$(git ls-files '*.go' | grep -v zz_generated)

.PHONY: lint
lint: ## Run the linters, among them the rule that no import goes up a floor.
	@mkdir -p $(KUBE_CILIUM_CACHE)/tools
	cd .ci/lint && go build -trimpath -o $(KUBE_CILIUM_CACHE)/tools/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	$(KUBE_CILIUM_CACHE)/tools/golangci-lint run ./...
	cd test/cluster && $(KUBE_CILIUM_CACHE)/tools/golangci-lint run ./...

##@ Test

.PHONY: test
test: verify-generated lint test-kernel test-e2e ## Run every test (needs root; brings real clusters up).

.PHONY: test-unit
test-unit: ## Run the tests that need neither root nor a kernel.
	go test ./...

.PHONY: test-kernel
test-kernel: test-cluster ## Run all tests but the end-to-end ones, with root, the kernel and an API server; none may skip.
	$(TEST_CLUSTER) build
	KUBE_CILIUM_TEST_ROOT=1 KUBEBUILDER_ASSETS=$$($(TEST_CLUSTER) assets) go test -count=1 -p 2 -timeout 20m $$(go list ./... | grep -v /test/e2e)
	cd test/cluster && KUBE_CILIUM_TEST_ROOT=1 go test -count=1 -p 1 -timeout 10m ./...
	cd test/oracle && go test -count=1 -timeout 5m . -rapid.checks=1000

.PHONY: test-e2e
test-e2e: build bin/kubectl-cilium bin/kubectl-hubble test-cluster ## Run the end-to-end tests on real clusters.
	KUBE_CILIUM_TEST_ROOT=1 TEST_CLUSTER=$(TEST_CLUSTER) go test -count=1 -v -parallel 64 -timeout 30m ./test/e2e

.PHONY: conformance
conformance: build bin/kubectl-cilium test-cluster ## Run Kubernetes' own NetworkPolicy specs on a real cluster; JUnit and log in dist/. FAMILY=, FOCUS=
	$(TEST_CLUSTER) up --name conformance --workers 2 --ip-family $(FAMILY) --cni ours
	@status=0; $(TEST_CLUSTER) conformance --name conformance --report dist $(if $(FOCUS),--focus '$(FOCUS)') || status=$$?; \
	$(TEST_CLUSTER) down --name conformance; exit $$status

.PHONY: bench
bench: build test-cluster ## Measure; writes docs/benchmarks.md and docs/benchmarks.json.
	go build -trimpath -o bin/bench ./test/bench
	TEST_CLUSTER=$(TEST_CLUSTER) bin/bench

.PHONY: deps
deps: ## Install the Debian packages that building and testing need (as root).
	apt-get -o DPkg::Lock::Timeout=300 update
	apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $(DEV_PACKAGES) $$(grep -v '^#' test/cluster/packages.txt)

.PHONY: packages
packages: ## Print the packages that deps installs.
	@printf '%s\n' $(DEV_PACKAGES) $$(grep -v '^#' test/cluster/packages.txt)

.PHONY: clean
clean: ## Remove what was built here; the cache of Kubernetes binaries stays.
	rm -rf bin dist
