# `make demo` needs Python 3.11 with venv, git and make; so does `make test`, alone.
# `make test-deps` installs the system packages that the full suite needs (Debian).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 4

.PHONY: help demo test heavy machines test-deps clouds cloud-sim check format bench bench-deps faults storms languages conformance hostile clean

help:
	@echo "make demo       see it work: a platform, three workers, one of them killed"
	@echo "make test       the short suite; names at its end what it had to leave out"
	@echo "make test-deps  install Prosody, ejabberd and chat clients for it (root or sudo)"
	@echo "make cloud-sim  run five simulated clouds until Ctrl-C: endpoints, a providers.yaml, how to break them"
	@echo "make heavy      servers that are flooded and killed, and clients of other makes (8 minutes)"
	@echo "make machines   rent machines for real: pools, joining, bursts, the story, systemd-nspawn (5 minutes)"
	@echo "make check      formatting, lint, types, direction of imports"
	@echo "make format     mend what can be mended by a machine"
	@echo "make languages  build the agents in examples/languages, and try each against the kit"
	@echo "make conformance  the same on all servers, into docs/conformance.md"
	@echo "make faults     break everything that can break, and print what became of the jobs (15 minutes)"
	@echo "make storms     rent at five simulated clouds while everything fails, and see what is left (25 minutes);"
	@echo "                fewer: make storms STORMS='--seeds 20'"
	@echo "make hostile    flood agents and dispatchers, and measure their memory (7 minutes)"
	@echo "make bench      measure Spinal beside its peers, into benchmarks/RESULTS.md (25 minutes);"
	@echo "                a part of it: make bench BENCH='--part jobs'"
	@echo "make bench-deps install the servers that the peers need (root or sudo)"

# An editable install resolves imports through the links under src/spinal.
links:
	@test -L src/spinal/bus || { echo "src/spinal/bus is not a symbolic link: clone again with 'git clone -c core.symlinks=true', or install without -e" >&2; exit 1; }
.PHONY: links

$(VENV)/pip: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/user: $(VENV)/pip
	$(BIN)/python -m pip install --quiet -e '.[images,speed]'
	@touch $@

$(VENV)/dev: $(VENV)/pip
	$(BIN)/python -m pip install --quiet -e '.[all]' --group dev
	@touch $@ $(VENV)/user

demo: links $(VENV)/user
	$(BIN)/spinal demo

# Real servers that are flooded and killed, and what people and others have at their end of the bus:
# beside too much else they show how busy the machine is.
HEAVY := tests/faults tests/integration/clients tests/integration/test_cluster.py \
	tests/integration/test_dispatchers.py tests/integration/test_hostile.py \
	tests/integration/test_servers_page.py tests/integration/test_services.py \
	tests/integration/test_stories.py

# Machines that are rented and join, each of them some processes.
MACHINES := tests/agents/provider/local/test_nspawn.py tests/cli/test_burst.py \
	tests/examples/clouds tests/integration/test_joining.py tests/integration/test_pools.py \
	tests/storms

# What two of the simulated clouds run on (moto, mimic) has an environment of its own as well.
CLOUDS := .venv-clouds

$(CLOUDS)/clouds: tests/clouds/requirements.txt
	$(PYTHON) -m venv $(CLOUDS)
	$(CLOUDS)/bin/python -m pip install --quiet --upgrade pip
	$(CLOUDS)/bin/python -m pip install --quiet -r $<
	@touch $@

clouds: $(CLOUDS)/clouds

cloud-sim: links $(VENV)/user $(CLOUDS)/clouds
	$(BIN)/python -m tests.clouds.show

# A part of it: make test TESTS=tests/bus
test: links $(VENV)/dev $(CLOUDS)/clouds
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(or $(TESTS),$(HEAVY:%=--ignore=%) $(MACHINES:%=--ignore=%))

heavy: links $(VENV)/dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(HEAVY)

machines: links $(VENV)/dev $(CLOUDS)/clouds
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(MACHINES)

test-deps:
	sh tests/deps.sh

bench-deps:
	sh tests/deps.sh prosody ejabberd redis-server nats-server curl

check: links $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	PYTHONPATH=src $(BIN)/lint-imports

format: links $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers have an environment of their own, so that ours stays clean.
PEERS := .venv-peers

$(PEERS)/peers: benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	@# One by one, so that one that cannot be had does not take the others with it.
	@failed=; for package in $$(grep -v '^#' $<); do \
		$(PEERS)/bin/python -m pip install --quiet -c $< $$package || failed="$$failed $$package"; \
	done; test -z "$$failed" || { echo "not installed:$$failed" >&2; exit 1; }
	@touch $@

# What cannot be installed is named as missing in the report.
bench: links $(VENV)/dev
	-$(MAKE) $(PEERS)/peers
	$(BIN)/python -m benchmarks.run $(BENCH)

# With SERVERS="--server embedded" no other server is needed; see docs/guarantees.md
faults: links $(VENV)/dev
	$(BIN)/python -m tests.faults.run $(SERVERS)

storms: links $(VENV)/dev $(CLOUDS)/clouds
	$(BIN)/python -m tests.storms.run $(STORMS)

# What has no toolchain here is named at the end.
languages: links $(VENV)/dev
	$(BIN)/python -m tests.languages.run --server embedded $(LANGUAGES)

conformance: links $(VENV)/dev
	$(BIN)/python -m tests.languages.run --write

# What a hostile peer can cost, in floods of 100,000 ids.
hostile: links $(VENV)/dev
	SPINAL_MANY=100000 $(BIN)/python -m pytest -q tests/integration/test_hostile.py

clean:
	rm -rf $(VENV) $(PEERS) $(CLOUDS) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
