#!/usr/bin/env bash
# Runs a test program as one rank under mpirun; each rank writes its results to a file of its own.
set -euo pipefail
if [ -n "${PLIMSOLL_RESULTS:-}" ]; then
  export GTEST_OUTPUT="xml:$PLIMSOLL_RESULTS.rank$OMPI_COMM_WORLD_RANK.xml"
fi
exec "$@"
