#!/bin/sh
# Judge the kernel that runs, and leave output/result.txt: a name and a result a line.
#
# usage: msrward.sh [-c CHECK] [-k KCIDB]   words for msrward check, and for MSRWARD_KCIDB
#
# It ends with 0 whatever the kernel does, so that LAVA goes on to send what there is. Where
# nothing could be judged, and so not even that is on record, the result is "run.end fail".
set -uf # what CHECK names are cases, no files

check='' kcidb=''
while getopts c:k: option; do
	case $option in
	c) check=$OPTARG ;;
	k) kcidb=$OPTARG ;;
	*) exit 2 ;;
	esac
done

output=$PWD/output
rm -rf "$output"
mkdir "$output" || exit 2
set -- -o "$output" --report "lava-results=$output/result.txt"
if [ -n "$kcidb" ]; then
	export MSRWARD_KCIDB="$kcidb"
	set -- "$@" --report "kcidb=$output/kcidb.json"
fi
# shellcheck disable=SC2086
msrward check "$@" $check
echo "msrward check: exit status $?"
[ -s "$output/result.txt" ] || echo "run.end fail" >"$output/result.txt"
