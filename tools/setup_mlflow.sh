#!/usr/bin/env bash
# Makes .venv-mlflow out of tools/requirements-mlflow.txt: a real MLflow server for tests/faults/test_mlflow.py.
# Installs only what is missing: a second call does nothing and needs no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C.UTF-8
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV

list=tools/requirements-mlflow.txt
stamp=.venv-mlflow/.installed-requirements-mlflow
# Two calls at once must not both write the environment.
exec 9>.setup.lock
flock 9
wanted=$(sha256sum <"$list" | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi
echo "setup: making .venv-mlflow"
if [ ! -x .venv-mlflow/bin/pip ] || ! .venv-mlflow/bin/python -c ''; then
  rm -rf .venv-mlflow
  /usr/bin/python3 -m venv .venv-mlflow
fi
.venv-mlflow/bin/python -m pip --disable-pip-version-check install --quiet --no-input --no-deps --only-binary :all: -r "$list"
echo "$wanted" >"$stamp"
