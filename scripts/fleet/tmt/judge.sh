#!/bin/sh
# Judge the kernel that runs. tmt reads results.yaml, and says "error" where there is none.
set -uf # what CHECK names are cases, no files
# shellcheck disable=SC2086
exec msrward check -o "$TMT_TEST_DATA/records" --report "tmt=$TMT_TEST_DATA/results.yaml" ${CHECK:-}
