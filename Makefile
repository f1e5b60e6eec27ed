# Everything a newcomer needs is `make demo` and `make test`; `make help` lists the rest.
SHELL := /bin/sh
PYTHON ?=
VENV := .venv
READY := $(VENV)/.ready
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
export PYTHONDONTWRITEBYTECODE := 1
unexport ANSIBLE_CONFIG PYTHONPATH VIRTUAL_ENV
PLAY := ansible-playbook -i inventories/lab

BENCH_USERS ?= 1000000
BENCH_REPEATS ?= 3
CHAOS_KILLS ?= 100
MUTATIONS ?= 2000
LAB_USERS ?= 20000
INVENTORY ?= inventories/lab
SERVERS_USERS ?= 2000

.DEFAULT_GOAL := help
.PHONY: help setup demo check-mappings lab lab-stop lab-delete test lint unit molecule bench chaos remote mutate logins servers wayback bench-rollback docs lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv from the hash-locked requirements

$(READY): requirements.txt
	@sh tests/setup.sh "$(PYTHON)" "$(VENV)"

demo: $(READY) ## start the lab, carry a generated monolith into both services, prove it
	@$(PLAY) playbooks/lab.yml -e lab_users=$(LAB_USERS)
	@$(PLAY) playbooks/site.yml

check-mappings: $(READY) ## name every mistake of mappings and schema SQL; no database needed (INVENTORY=inventories/lab)
	@ansible-playbook -i $(INVENTORY) playbooks/check_mappings.yml

lab: $(READY) ## start the lab alone (LAB_USERS=20000)
	@$(PLAY) playbooks/lab.yml -e lab_users=$(LAB_USERS)

lab-stop: $(READY) ## stop the lab's servers, keep their data
	@$(PLAY) playbooks/lab.yml -e lab_state=stopped

lab-delete: $(READY) ## stop the lab and delete it
	@$(PLAY) playbooks/lab.yml -e lab_state=absent

test: lint ## lint, unit, database and molecule tests
	@sh tests/all.sh

lint: $(READY) ## ruff, ansible-lint (production), mypy --strict and sanity tests on the staged modules
	@ruff check .
	@ansible-lint -q --offline
	@sh tests/lint/staged.sh

unit: $(READY) ## unit and database tests, on servers of their own
	@python -m pytest -q

molecule: $(READY) ## molecule scenarios, on a lab of their own
	@sh tests/molecule.sh

bench: $(READY) ## measure the transfer against its limits (BENCH_USERS=1000000 BENCH_REPEATS=3)
	@BENCH_USERS=$(BENCH_USERS) BENCH_REPEATS=$(BENCH_REPEATS) python -m tests.bench

chaos: $(READY) ## kill the transfer at random instants (CHAOS_KILLS=100)
	@python -m tests.chaos --kills $(CHAOS_KILLS)

remote: $(READY) ## run the whole story over ssh with two runners and lose one (needs sshd: Debian openssh-server)
	@python -m tests.remote

mutate: $(READY) ## break rows in every way and see validation name them (MUTATIONS=2000)
	@python -m tests.mutation --mutations $(MUTATIONS)

logins: $(READY) ## log in with every Django version that this Python runs
	@python -m tests.logins

servers: $(READY) ## run everything against PostgreSQL 14 to 18, mixed, with TLS and odd settings (fetches the servers)
	@python -m tests.servers --users $(SERVERS_USERS)

wayback: $(READY) ## kill snapshot, rollback and rehearsal at each step, fill a disk, encrypt dumps
	@python -m tests.wayback

bench-rollback: $(READY) ## seconds of snapshot, proof and rollback (BENCH_USERS=1000000)
	@BENCH_USERS=$(BENCH_USERS) python -m tests.bench.way_back

docs: $(READY) ## write the options of every role to docs/options.md
	@python -m tests.lint.options

LOCK := uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --python-version 3.11

lock: $(READY) ## lock the requirements with hashes, for every supported Python
	@$(LOCK) requirements.in -o requirements.txt
	@$(LOCK) requirements-runner.in -c requirements.txt -o requirements-runner.txt
	@$(LOCK) requirements-setup.in -o requirements-setup.txt

clean: ## delete the lab and .venv; artifacts stay
	@if [ -x $(VENV)/bin/ansible-playbook ]; then $(PLAY) playbooks/lab.yml -e lab_state=absent; fi
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
