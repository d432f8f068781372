#!/usr/bin/env bash
# What takes longer than the ordinary tests: every test under each sanitizer, report pages in a browser, and the comparison
# with the real libraries (PyTorch, Transformers, PEFT, bitsandbytes, TensorBoard), which are fetched from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
./tools/test.sh
QLORA_RANDOM_JOBS=200 QLORA_RANDOM_SEED=1000 build/tests/tools_tests --gtest_filter='PlanHonesty.*'
./tools/sanitize.sh address,undefined
./tools/sanitize.sh thread
./tests/interop/run.sh build/tools/qlora_engine
./tests/report_pages/run.sh
