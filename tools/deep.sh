#!/usr/bin/env bash
# What takes longer than the ordinary tests: the fault tests with their full numbers, seeded mutants, every test under
# each sanitizer, a million made-up inputs for each parser, how much of it the committed ones reach, report pages in a
# browser, and the comparison with the real libraries (PyTorch, Transformers, PEFT, bitsandbytes, TensorBoard), which are
# fetched from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
./tools/test.sh
QLORA_RANDOM_JOBS=2000 QLORA_RANDOM_SEED=10000 build/tests/tools_tests --gtest_filter='PlanHonesty.*'
QLORA_DEEP=1 build/tests/fault_tests
QLORA_DEEP=1 build/tests/engine_tests --gtest_filter='CommitFaultsTest.*'
QLORA_DEEP=1 build/tests/tools_tests --gtest_filter='*KilledRank.*'
./tests/mutants/run.sh
./tools/sanitize.sh address,undefined
./tools/sanitize.sh thread
build-thread/tests/thread_tests --gtest_filter='*HostComm*:*ControlChannel*:*CheckpointWriter*:*OfRanks*' --gtest_repeat=20 \
  --gtest_shuffle --gtest_brief=1
./tools/fuzz.sh 1000000
./tools/coverage.sh
./tests/interop/run.sh build/tools/qlora_engine
./tests/report_pages/run.sh
