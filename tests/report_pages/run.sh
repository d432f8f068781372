#!/usr/bin/env bash
# run.sh [PAGE.html ...]: a page with everything that pages can hold, and the pages named, laid out in Debian's Chromium.
set -euo pipefail
cd "$(dirname "$0")/../.."
./tools/install_packages.sh chromium
cmake --build build --target write_sample_page
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
build/tests/write_sample_page "$folder/sample.html"
tests/report_pages/check_pages.py "$folder/sample.html" "$@"
