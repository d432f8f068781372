#!/usr/bin/env bash
# run.sh [PAGE.html ...]: a page with everything that pages can hold, a plan's, and the pages named, laid out in Debian's
# Chromium.
set -euo pipefail
cd "$(dirname "$0")/../.."
./tools/install_packages.sh chromium
cmake --build build --target write_sample_page qlora_engine
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
build/tests/write_sample_page "$folder/sample.html"
# Nothing fits: with changes, modes, ranks, a scaling curve. It ends with 71 for that.
cat > "$folder/plan.textproto" <<JOB
model: "$PWD/bench/models/llama_33b" output_dir: "$folder/plan" mode: LORA
plan { card: "RTX 4090" report: true } economics { cost_per_hour: 1.2 }
JOB
build/tools/qlora_engine plan "$folder/plan.textproto" > /dev/null || [ $? = 71 ]
tests/report_pages/check_pages.py "$folder/sample.html" "$folder/plan/plan_report.html" "$@"
