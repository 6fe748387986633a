#!/bin/sh
# Installs the component's Python packages into a virtual environment under its work directory.
#
# Usage: install.sh PACKAGE_DIRECTORY WORK_DIRECTORY
#
# Each requirements.txt has an environment of its own, venv-<its hash>; the link "venv" is switched to it once it
# is complete. Whatever fails before leaves the one in force as it was.

set -u
# Settings for people's own installations must not redirect this one.
unset PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE PIP_PREFIX PIP_TARGET PIP_USER

modules="venv ensurepip sqlite3 ssl"
by_hand=""
needed_mb=150

fail() {
    for sentence in "$@"; do
        printf 'ClientDevicePruner cannot be installed: %s\n' "$sentence" >&2
    done
    exit 1
}

# Prints its argument as one word of a shell script.
quoted() {
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}

# Prints the modules that a Python lacks.
missing_modules() {
    # shellcheck disable=SC2086 # one argument a module
    "$1" - $modules <<'PYTHON'
import sys

for name in sys.argv[1:]:
    try:
        __import__(name)
    except ImportError:
        print(name)
PYTHON
}

# Sets "python" to the newest Python with all that is needed, or ends with what is missing in the newest.
# One that lacks only what makes environments will do where the wheels are bundled: "by_hand" is set then.
find_python() {
    lacking=""
    bare=""
    for name in python3.14 python3.13 python3.12 python3.11 python3.10 python3; do
        python=$(command -v "$name") || continue
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
        lacks=$(missing_modules "$python") || continue
        [ -n "$lacks" ] || return 0
        [ -n "$lacking" ] || { lacking=$lacks; incomplete=$python; }
        case $lacks in
        *sqlite3* | *ssl*) ;;
        *) [ -n "$bare" ] || bare=$python ;;
        esac
    done
    if [ -n "$bare" ] && [ -d "$package/wheelhouse" ]; then
        python=$bare
        by_hand=yes
        return 0
    fi
    [ -n "$lacking" ] || fail "it needs Python 3.10 or newer, and none of python3.14 to python3.10 or python3 is one."
    version=$("$incomplete" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    set --
    for module in $lacking; do
        case $module in
        venv | ensurepip) remedy="on Debian and Ubuntu install python$version-venv, or bundle a wheelhouse" ;;
        *) remedy="install your distribution's package for it" ;;
        esac
        set -- "$@" "$incomplete lacks the module $module; $remedy."
    done
    fail "$@"
}

check_work_directory() {
    mkdir -p "$work" 2>/dev/null || fail "the work directory $work cannot be made."
    probe=$work/.install-probe
    printf '#!/bin/sh\nexit 0\n' 2>/dev/null >"$probe" || fail "the work directory $work cannot be written in."
    chmod 0755 "$probe"
    "$probe" 2>/dev/null
    ran=$?
    rm -f "$probe"
    [ "$ran" -eq 0 ] || fail "programs cannot be executed in the work directory $work (is it mounted noexec?)."
}

check_free_space() {
    free_mb=$("$python" -c 'import shutil, sys; print(shutil.disk_usage(sys.argv[1]).free >> 20)' "$work") || free_mb=0
    [ "$free_mb" -ge "$needed_mb" ] ||
        fail "it needs $needed_mb MB of free space for $work, and there are $free_mb MB."
}

# Whether an environment's Python runs and finds the packages.
finds_packages() {
    "$work/$1/bin/python" - 2>/dev/null <<'PYTHON'
from importlib.util import find_spec

raise SystemExit(not all(map(find_spec, ("awscrt", "awsiot", "boto3"))))
PYTHON
}

# Whether an environment was completed, and still works.
is_usable() {
    [ -f "$work/$1/complete" ] && finds_packages "$1"
}

# Calls the new environment's pip with what every call has in common. What it would compile nobody would read.
pip_install() {
    HOME=$scratch TMPDIR=$scratch "$work/$environment/bin/python" -m pip install --require-hashes --no-cache-dir \
        --no-compile --no-input --no-user --disable-pip-version-check --quiet "$@" --requirement "$requirements"
}

# Has pip trust whom this core device trusts, unless it is told whom to trust.
trust_authorities() {
    [ -z "${PIP_CERT:-}" ] && [ -n "${AWS_CA_BUNDLE:-}${GG_ROOT_CA_PATH:-}" ] || return 0
    HOME=$scratch TMPDIR=$scratch "$work/$environment/bin/python" \
        "$package/src/install_authorities.py" "$scratch/authorities.pem" || return 0
    PIP_CERT=$scratch/authorities.pem
    export PIP_CERT
    # They are in that file, and would be taken instead of it.
    unset REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
}

install_packages() {
    if [ -d "$package/wheelhouse" ]; then
        # What is bundled needs no network; what it lacks for this platform may be on an index.
        pip_install --no-index --find-links "$package/wheelhouse" && return 0
        trust_authorities
        pip_install --find-links "$package/wheelhouse"
    else
        trust_authorities
        pip_install
    fi
}

# Makes the environment and fills it.
fill_environment() {
    if [ -n "$by_hand" ]; then
        "$python" "$package/src/install_wheels.py" "$requirements" "$package/wheelhouse" "$work/$environment" ||
            fail "the bundled wheels could not be unpacked; see the message above. With venv and ensurepip, pip could try an index."
        return 0
    fi
    HOME=$scratch TMPDIR=$scratch "$python" -m venv "$work/$environment" >"$scratch/venv.log" 2>&1 || {
        cat "$scratch/venv.log" >&2
        fail "$python could not make a virtual environment in $work; see its messages above."
    }
    install_packages || fail "the packages in requirements.txt could not be installed; see pip's messages above."
}

make_environment() {
    check_free_space
    # One that is in force is never touched, even if it has become unusable.
    [ "$environment" != "$in_force" ] || environment=$environment-$(date +%s)
    rm -rf "${work:?}/$environment"
    scratch=$work/install-scratch
    rm -rf "$scratch"
    trap 'rm -rf "$scratch" "$work/$environment"' EXIT
    trap 'exit 1' HUP INT TERM
    mkdir -p "$scratch" || fail "the work directory $work cannot be written in."
    fill_environment
    finds_packages "$environment" || fail "$python does not find the packages that were installed in $work/$environment."
    sync # a power cut must not leave a mark on what is only half on the disk
    : >"$work/$environment/complete"
    trap - EXIT HUP INT TERM
    rm -rf "$scratch"
}

# Writes the command for people on the core device; $1 in it is the command, and options come after. It reads the
# component's bytecode and adds none: root's files the component could not remove.
write_command() {
    {
        printf '#!/bin/sh\n'
        printf 'PYTHONPATH=%s\nexport PYTHONPATH\nwork=%s\n' "$(quoted "$package/src")" "$(quoted "$work")"
        cat <<'COMMAND'
PYTHONOPTIMIZE=2 PYTHONPYCACHEPREFIX=$work/bytecode PYTHONDONTWRITEBYTECODE=1
export PYTHONOPTIMIZE PYTHONPYCACHEPREFIX PYTHONDONTWRITEBYTECODE
if [ $# -eq 0 ]; then
    exec "$work/venv/bin/python" -m client_device_pruner --work-dir "$work"
fi
command=$1
shift
exec "$work/venv/bin/python" -m client_device_pruner "$command" --work-dir "$work" "$@"
COMMAND
    } >"$work/pruner.new" && chmod 0755 "$work/pruner.new" && mv -f "$work/pruner.new" "$work/pruner" ||
        fail "the command $work/pruner could not be written."
}

# The link is replaced in one step: there is always one in force.
switch_to_environment() {
    rm -f "$work/venv.new"
    ln -s "$environment" "$work/venv.new" &&
        "$work/$environment/bin/python" -c 'import os, sys; os.replace(*sys.argv[1:])' "$work/venv.new" "$work/venv" ||
        fail "the link $work/venv could not be switched to the new environment."
}

remove_old_environments() {
    for old in "$work"/venv-*; do
        case ${old##*/} in
        "$environment" | "$in_force") ;;
        *) rm -rf "$old" ;;
        esac
    done
}

# Whether all that was compiled can be read: of a file for which the disk has no room, Python may keep the first part.
is_bytecode_whole() {
    "$work/venv/bin/python" - "$work/bytecode" 2>/dev/null <<'PYTHON'
import marshal, pathlib, sys

for path in pathlib.Path(sys.argv[1]).rglob("*.pyc"):
    marshal.loads(path.read_bytes()[16:])
PYTHON
}

# Compiles what will run, as the recipe has it run; what is there is of another version or environment.
fill_bytecode() {
    rm -rf "$work/bytecode"
    PYTHONPATH=$package/src PYTHONOPTIMIZE=2 PYTHONPYCACHEPREFIX=$work/bytecode \
        "$work/venv/bin/python" -m install_bytecode ||
        printf '%s\n' "ClientDevicePruner is installed, but not all of it could be compiled; see the messages above." >&2
    is_bytecode_whole || {
        # A file in its place keeps the component from leaving such halves itself.
        rm -rf "$work/bytecode"
        printf "" >"$work/bytecode"
        printf '%s\n' "ClientDevicePruner is installed, but there was no room for its bytecode: it compiles at each start." >&2
    }
    sync # after a power cut, Python would trip over what is only half on the disk
}

[ $# -eq 2 ] || fail "install.sh takes the package directory and the work directory."
package=$(cd "$1" 2>/dev/null && pwd) || fail "the package directory $1 cannot be read."
requirements=$package/requirements.txt
[ -r "$requirements" ] || fail "$requirements is missing in the artifact."
work=${2%/}
check_work_directory
work=$(cd "$work" && pwd)

hash=$(sha256sum <"$requirements" | cut -c1-12)
environment=venv-$hash
in_force=$(readlink "$work/venv" 2>/dev/null) || in_force=""
case $in_force in
"$environment"*) is_usable "$in_force" && environment=$in_force ;;
esac
if ! is_usable "$environment"; then
    find_python
    make_environment
fi
write_command
if [ "$environment" != "$in_force" ]; then
    switch_to_environment
    remove_old_environments
fi
fill_bytecode
