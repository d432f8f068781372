#!/usr/bin/env bash
# Holds a built qlora_engine against the real libraries:
#   tests/interop/run.sh build/tools/qlora_engine
# Installs them from PyPI into a virtual environment of its own (QLORA_VENV, default build/interop_venv); with
# QLORA_PYTHON set, that interpreter is used as it is.
set -euo pipefail
engine=$(realpath "${1:?usage: run.sh QLORA_ENGINE}")
here=$(cd "$(dirname "$0")" && pwd)
python=${QLORA_PYTHON:-}
if [ -z "$python" ]; then
  "$here/../../tools/install_packages.sh" python3-venv
  venv=${QLORA_VENV:-$here/../../build/interop_venv}
  [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet -r "$here/requirements.txt"
  python=$venv/bin/python
fi
failed=0
export PYTHONDONTWRITEBYTECODE=1
for check in "$here"/check_*.py; do
  echo "== $(basename "$check" .py)"
  "$python" "$check" "$engine" || failed=1
done
exit $failed
