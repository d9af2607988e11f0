# Thin: each target is a script of tools/ and can be called by itself.
.PHONY: help setup build demo example test proofs bench format tidy clean

help:
	@echo "make demo    set up, build, and fine-tune a tiny model on two ranks with unequal memory budgets"
	@echo "make example learn the simulated task, and show success rates in closed loop beside controls (5 minutes)"
	@echo "make test    set up, build, and run a fixed slice of every proof"
	@echo "make proofs  every proof in full, resumable; figures go to docs/benchmarks.md (FORCE=1: all again)"
	@echo "make setup | build | bench | format | tidy | clean"

setup:
	@tools/setup.sh

build: setup
	@tools/build.sh

demo:
	@tools/demo.sh

example:
	@tools/example.sh

test:
	@tools/test.sh

proofs:
	@tools/proofs.sh

bench:
	@tools/bench.sh

format:
	@tools/format.sh

tidy:
	@PLIMSOLL_PROOFS=1 tools/test.sh tidy

clean:
	rm -rf build build-sanitize build-tidy
