#!/usr/bin/env bash
# The simulated table at each difficulty: success in closed loop and action error of the policy, of a control with shuffled instructions, of the untrained policy and of the best constant action; at the difficulty of `make example` the policy clearly beats all three
# Does not depend on: docs *.md tests bench tools/demo*
set -euo pipefail
tools/example.sh --difficulty fixed permuted anywhere
