# Two commands are enough: `make demo` and `make test`. Each makes its own set-up and is quick the second time.
.DEFAULT_GOAL := help
.PHONY: $(shell grep -oE '^[a-z-]+:' Makefile | tr -d :)
RUN := scripts/run
# Tests side by side, one more than cores: many of them wait. With more still, tests that wait for discovery are nearer to their bounds.
JOBS ?= $(shell expr $$(nproc) + 1)

# Tests of the fleet server that hold on PostgreSQL as well.
ON_POSTGRES := $(addprefix test/vla_fleet/test_,line.py registry.py garbage.py rollouts.py experiments.py)

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## environment and build, without tests and linters
	@scripts/setup.sh

setup-dev: ## the same with tests and linters
	@scripts/setup.sh dev

setup-demo:
	@scripts/setup.sh demo

setup-analysis: ## the same with what vla-evidence plans and draws with
	@scripts/setup.sh analysis

demo: setup-demo ## a simulated arm changes its policy in motion and undoes a bad one (under 3 minutes once set up)
	@$(RUN) python -m vla_sim.demo --out build/demo

demo-fleet: setup-dev ## a fleet of eight: rollouts, rollbacks and an A/B test on evidence (under 4 minutes once set up)
	@$(RUN) python -m vla_sim.fleet.demo --out build/demo-fleet

demo-flywheel: setup-dev ## robots fail at a new colour, an operator corrects, the fleet learns it
	@$(RUN) python -m vla_sim.fleet.flywheel --out build/demo-flywheel

test: setup-dev ## the whole test suite on real ROS 2: files side by side, then what counts ticks by itself
	@$(RUN) python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not alone and not long"
	@$(RUN) python -m pytest -q -m alone $$(grep -rlE 'witness: Witness|mark.alone' test --include 'test_*.py')

test-long: setup-dev ## the tests that train networks or measure for a minute
	@$(RUN) python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder -m long $$(grep -rl mark.long test --include 'test_*.py')

test-lerobot: setup-dev ## real LeRobot checkpoints in the workers, equal to LeRobot's own actions (makes .venv-lerobot: 8 GB)
	@scripts/setup_lerobot.sh
	@$(RUN) python -m pytest -q test/lerobot

VLA_OTA_CUDA_PYTHON ?= .venv/bin/python
test-cuda: ## policies on an NVIDIA GPU; fails without one; VLA_OTA_CUDA_PYTHON names an interpreter with what it takes (docs/runtime.md)
	@$(VLA_OTA_CUDA_PYTHON) -m pytest -q -c test/cuda/pytest.ini test/cuda

test-browser: setup-dev ## the fleet server's page in real Chromium, clean by axe (Debian and Ubuntu: apt install chromium)
	@$(RUN) python -m pytest -q test/browser

test-fleet-servers: setup-dev ## the fleet server on PostgreSQL, NATS and S3's protocol: two replicas, one killed; under 3 minutes
	@$(RUN) python -m pytest -q -n $(JOBS) --dist loadfile test/vla_fleet_servers
	@PYTHONPATH=test $(RUN) python -m pytest -q -n $(JOBS) --dist loadfile -p support.on_postgres $(ON_POSTGRES)

test-big: setup-dev ## files of 2, 4 and 10 GiB through fetch, verify and store, in little memory (40 GB of disk, under 3 minutes)
	@$(RUN) python -m pytest -q -s test/big

FUZZ_SECONDS ?= 60
fuzz: setup-dev ## strangers' bytes to every reader for FUZZ_SECONDS=60; FUZZ_TARGETS="header delta" only to these
	@PYTHONPATH=test $(RUN) python -m fuzz --seconds $(FUZZ_SECONDS) $(if $(FUZZ_SEED),--seed $(FUZZ_SEED)) $(if $(FUZZ_TARGETS),--targets $(FUZZ_TARGETS))

lint: setup-dev ## ruff and mypy
	@$(RUN) ruff check --output-format concise .
	@$(RUN) ruff format --check -q .
	@$(RUN) mypy vla_adaptation vla_checkpoint vla_contract vla_doctor vla_evidence vla_ros vla_policy_node vla_recorder vla_ota_manager vla_fleet vla_fleet_bridge vla_learning vla_sim benchmarks

bench: setup-dev ## control loop, swap and download against other ways of doing it; tables, and build/bench/*.json
	@$(RUN) python -m benchmarks --out build/bench

bench-swap: setup-dev ## a new policy under a running loop beside other ways, five times; build/bench/swap*.json
	@$(RUN) python -m benchmarks.swap --out build/bench --runs 5 --budget 900
	@$(RUN) python -m benchmarks.swap_lerobot --out build/bench --runs 5 --budget 900

bench-fleet: setup-dev ## 100 to 10,000 robots, faults, bytes; build/bench/fleet.json; QUICK=1: small; DOCS=1: into docs/fleet.md
	@PYTHONPATH=test $(RUN) python -m benchmarks.fleet --replicas --out build/bench $(if $(QUICK),--quick) $(if $(DOCS),--docs docs)

bench-dataset: setup-dev ## data sets built from 100, 300 and 1,000 episodes, beside plain pandas; build/bench/dataset.json
	@$(RUN) python -m benchmarks.dataset --out build/bench

bench-evidence: setup ## error rates of the statistical judges beside a threshold and the z test
	@$(RUN) python -m benchmarks.evidence --out build/bench

bench-merge: setup-dev ## LoRA adapters merged: exactness, speed and memory beside PEFT, bad clients; build/bench/merge.json
	@$(RUN) python -m benchmarks.merge --out build/bench

bench-update: setup-dev ## fetch, verify and store beside curl; tensor deltas of real fine-tunes beside other ways; SMALL=1 only tries it
	@$(RUN) python -m benchmarks.store --out build/bench $(if $(SMALL),--runs 1)
	@$(RUN) python -m benchmarks.update --out build/bench $(if $(SMALL),--small)

clean: ## forget the environment and the build
	rm -rf .venv .venv-lerobot build install log
