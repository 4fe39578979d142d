# Sourced by the other scripts: makes the tree runnable, and is quick when it already is.
#
#   setup            a virtual environment (.venv) with the package built and installed in it
#   setup test       the same, with what the tests need
#
# What it cannot get by itself it names, and stops with status 2.

root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
venv=$root/.venv
bin=$venv/bin

stop() {
	echo "msrward: $*" >&2
	exit 2
}

# A command in a group of its own, which ends with the script: a shell puts its traps off while it
# waits for one in the foreground, and this one does not. It has no stdin, and no terminal to ask.
apart() {
	setsid "$@" &
	wait $!
}

# Tell all that is apart to end, with what it has started, and wait for it.
end_apart() {
	local each
	for each in $(jobs -p); do
		kill -TERM -- "-$each" 2>/dev/null || kill -TERM "$each" || true # it leads no group yet
		wait "$each" || true
	done 2>/dev/null
}

# SIGTERM and Ctrl-C end what was started; what is half done is done anew the next time.
interrupted() {
	trap '' INT TERM HUP
	end_apart
	echo "msrward: interrupted" >&2
	exit 130
}
trap interrupted INT TERM HUP

# The first Python that is new enough; Debian's packages keep headers and venv apart.
find_python() {
	local each
	for each in python3 python3.14 python3.13 python3.12 python3.11; do
		if "$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			echo "$each"
			return
		fi
	done
}

can_build_extensions() {
	"$1" -c 'import ensurepip, pathlib, sysconfig, venv
assert (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists()' 2>/dev/null
}

missing() {
	local python
	command -v cc gcc >/dev/null || echo compiler
	command -v make >/dev/null || echo make
	{ command -v as && command -v ld; } >/dev/null || echo binutils
	python=$(find_python)
	{ [ -n "$python" ] && can_build_extensions "$python"; } || echo python
}

# What each manager calls a compiler, make, binutils, and Python with venv and headers.
package_command() {
	if command -v apt-get >/dev/null; then
		echo "apt-get -qq -y install gcc libc6-dev linux-libc-dev make binutils python3 python3-venv python3-dev"
	elif command -v dnf >/dev/null; then
		echo "dnf -q -y install gcc glibc-devel kernel-headers make binutils python3 python3-devel"
	elif command -v zypper >/dev/null; then
		echo "zypper -q -n install gcc glibc-devel linux-glibc-devel make binutils python311 python311-devel"
	elif command -v pacman >/dev/null; then
		echo "pacman -Sq --noconfirm --needed gcc linux-api-headers make binutils python"
	fi
}

install_tools() {
	local lacking command
	lacking=$(missing)
	lacking=${lacking//$'\n'/ }
	[ -n "$lacking" ] || return 0
	command=$(package_command)
	[ -n "$command" ] || stop "missing here: $lacking (python means 3.11 or newer with venv and headers); install them"
	[ "$(id -u)" = 0 ] || stop "missing here: $lacking; as root: $command"
	echo "msrward: installing what is missing ($lacking)" >&2
	case $command in apt-get*) apart apt-get -qq update >&2 || true ;; esac
	DEBIAN_FRONTEND=noninteractive apart $command >&2 || stop "could not install $lacking with: $command"
	lacking=$(missing)
	lacking=${lacking//$'\n'/ }
	[ -z "$lacking" ] || stop "still missing after '$command': $lacking (python means 3.11 or newer)"
}

pip() {
	PATH=$bin:$PATH apart "$bin/python" -m pip -qq --no-input --disable-pip-version-check "$@" ||
		stop "pip $1 failed, see above; a package index must be reachable for the first run"
}

# An interpreter that went away or changed leaves a venv that does not start: make it anew.
make_venv() {
	"$bin/python" -c 'import pip' 2>/dev/null && return
	rm -rf "$venv"
	apart "$(find_python)" -m venv "$venv" || stop "cannot make $venv"
}

# Directories do not count: Python writes its bytecode into them.
newer_than() {
	[ ! -e "$1" ] || [ -n "$(find "${@:2}" -name __pycache__ -prune -o ! -type d -newer "$1" -print -quit)" ]
}

install_requirements() {
	newer_than "$venv/requirements" "$root/pyproject.toml" || return 0
	"$bin/python" - "$root/pyproject.toml" >"$venv/build-requirements" <<'END'
import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["build-system"]["requires"], sep="\n")
END
	pip install -r "$venv/build-requirements"
	touch "$venv/requirements"
}

# What meson takes note of once, when it configures a build directory, and never looks at again.
made_by() {
	local cc=${CC:-cc}
	command -v "${cc%% *}" >/dev/null || cc=gcc
	echo "$root, CC=$cc: $($cc --version 2>&1 | head -n 1)"
	"$bin/python" -c 'import sys; print(sys.executable, sys.version)'
	echo "CFLAGS=${CFLAGS:-} CPPFLAGS=${CPPFLAGS:-} LDFLAGS=${LDFLAGS:-}"
}

make_build_anew() {
	local now
	now=$(made_by)
	[ "$now" = "$(cat "$root/build/made-by" 2>/dev/null)" ] && return
	rm -rf "$root/build"
	mkdir "$root/build"
	echo "$now" >"$root/build/made-by"
}

# The first error of the compiler, else of meson, else the last that was said.
first_error() {
	grep -m 1 -E '(^|[: ])(fatal )?error: #?[^s]|undefined reference|: ERROR: ' "$1" ||
		grep -m 1 -iE 'error: ' "$1" || tail -n 1 "$1"
}

build_package() {
	local log=$venv/build.log
	make_build_anew
	# The log is not for a function: what a trap says while it runs would go there too.
	PATH=$bin:$PATH apart sh -c 'exec "$@" >"$0" 2>&1' "$log" "$bin/python" -m pip -qq --no-input \
		--disable-pip-version-check install --no-build-isolation --no-deps --force-reinstall \
		--config-settings=build-dir="$root/build" "$root" ||
		stop "the package does not build: $(first_error "$log" | sed 's/^ *//'); all that was said: $log"
}

# The stamp names the files that the package is made of: one that goes away leaves no newer file.
install_package() {
	local sources=("$root"/{vmm,native,guests,meson.build,pyproject.toml}) names
	names=$(find "${sources[@]}" -name __pycache__ -prune -o ! -type d -print | LC_ALL=C sort)
	! newer_than "$venv/package" "${sources[@]}" && [ "$names" = "$(cat "$venv/package")" ] && return
	echo "$names" >"$venv/package.new"
	build_package
	mv "$venv/package.new" "$venv/package"
}

install_dependencies() {
	newer_than "$venv/dependencies-$1" "$root/pyproject.toml" || return 0
	"$bin/python" - "$1" "$root/pyproject.toml" >"$venv/dependencies" <<'END'
import sys, tomllib
project = tomllib.load(open(sys.argv[2], "rb"))["project"]
print(*project["dependencies"], *project["optional-dependencies"].get(sys.argv[1], ()), sep="\n")
END
	pip install -r "$venv/dependencies"
	touch "$venv/dependencies-$1"
}

setup() {
	install_tools
	mkdir -p "$venv"
	exec 9>"$root/.venv.lock"
	apart flock 9
	make_venv
	install_requirements
	install_dependencies "${1:-run}"
	install_package
	flock -u 9
	exec 9>&-
}
