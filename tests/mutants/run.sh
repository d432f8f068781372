#!/usr/bin/env bash
# Tests that test nothing: each patch here breaks a promise, and the test that it names must notice.
#   tests/mutants/run.sh [NAME ...]
# A patch begins with "killed by: TARGET FILTER". It is applied to a copy of the tree, in build-mutants/.
# A compiler cache saves most of the time: CMAKE_CXX_COMPILER_LAUNCHER=ccache tests/mutants/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD/tests/mutants
tree=$PWD/build-mutants/tree
mkdir -p "$tree"
# What has changed gets the time of now: a mutant's object must not pass for that of the file put back over it.
git ls-files | while read -r file; do
  cmp -s "$file" "$tree/$file" && continue
  mkdir -p "$tree/$(dirname "$file")"
  cp --preserve=mode "$file" "$tree/$file"
done
comm -13 <(git ls-files | sort) <(cd "$tree" && find . -path ./build -prune -o -type f -printf '%P\n' | sort) |
  sed "s|^|$tree/|" | xargs -r -d '\n' rm
cd "$tree"

names=("$@")
[ ${#names[@]} -gt 0 ] || mapfile -t names < <(cd "$here" && ls ./*.patch | sed 's|^\./||; s|\.patch$||')
declare -A filters
stale=0
for name in "${names[@]}"; do
  read -r _ _ target filter <"$here/$name.patch"
  filters[$target]+=${filters[$target]:+:}$filter
  patch -s -p1 --dry-run <"$here/$name.patch" || { echo "$name: does not apply"; stale=1; }
done
[ $stale -eq 0 ]

cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=ON -DQLORA_CUDA=OFF >/dev/null
# passes TARGET FILTER. What does not compile tests nothing either.
passes() {
  cmake --build build --target "$1" >build.log 2>&1 || { tail -n 30 build.log; exit 1; }
  timeout 120 "build/tests/$1" --gtest_filter="$2" --gtest_brief=1 >test.log 2>&1
}
for target in "${!filters[@]}"; do
  passes "$target" "${filters[$target]}" || { tail -n 30 test.log; echo "$target fails without mutants"; exit 1; }
done
survivors=()
for name in "${names[@]}"; do
  read -r _ _ target filter <"$here/$name.patch"
  patch -s -p1 <"$here/$name.patch"
  if passes "$target" "$filter"; then
    survivors+=("$name")
    echo "$name: SURVIVES $target $filter"
  else
    echo "$name: killed"
  fi
  patch -s -R -p1 <"$here/$name.patch"
done
[ ${#survivors[@]} -eq 0 ]
