#!/usr/bin/env bash
# Tests that test nothing: each patch here breaks a promise, and the test that it names must notice.
#   tests/mutants/run.sh [NAME ...]
# A patch begins with "killed by: TARGET FILTER". It is applied to a copy of the tree, in build-mutants/.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD/tests/mutants
tree=$PWD/build-mutants/tree
mkdir -p "$tree"
git ls-files | tar -c -T - | tar -x -C "$tree"
cd "$tree"
cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=ON -DQLORA_CUDA=OFF >/dev/null
# Whether the test passes. What does not compile tests nothing either.
passes() {
  cmake --build build --target "$target" >build.log 2>&1 || { tail -n 30 build.log; exit 1; }
  timeout 300 "build/tests/$target" --gtest_filter="$filter" --gtest_brief=1 >test.log 2>&1
}
survivors=()
names=("$@")
[ ${#names[@]} -gt 0 ] || mapfile -t names < <(cd "$here" && ls ./*.patch | sed 's|^\./||; s|\.patch$||')
for name in "${names[@]}"; do
  patch=$here/$name.patch
  read -r _ _ target filter <"$patch"
  passes || { echo "$name: $target $filter fails without it"; exit 1; }
  patch -s -p1 <"$patch"
  if passes; then
    survivors+=("$name")
    echo "$name: SURVIVES $target $filter"
  else
    echo "$name: killed"
  fi
  patch -s -R -p1 <"$patch"
done
[ ${#survivors[@]} -eq 0 ]
