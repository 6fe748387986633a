#!/bin/sh
# Installs the component's Python packages into a virtual environment below its work directory, and writes the
# command `pruner` there.
#
# Usage: install.sh PACKAGE_DIRECTORY WORK_DIRECTORY [ENVIRONMENT]
#
# Each requirements.txt has an environment of its own, venv-<its hash>; the link "venv" is switched to it once it is
# complete. Whatever fails before leaves the one in force as it was. ENVIRONMENT is a virtual environment that holds
# the packages already, and is linked as it is: the local core does so.

set -u
# Settings for people's own installations must not redirect this one.
unset PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE PIP_PREFIX PIP_TARGET PIP_USER

modules="venv ensurepip sqlite3 ssl"
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

# Sets "python" to the newest Python with all that is needed, or ends with what the newest one lacks.
find_python() {
    lacking=""
    for name in python3.14 python3.13 python3.12 python3.11 python3.10 python3; do
        python=$(command -v "$name") || continue
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
        lacks=$(missing_modules "$python") || continue
        [ -n "$lacks" ] || return 0
        [ -n "$lacking" ] || { lacking=$lacks; incomplete=$python; }
    done
    [ -n "$lacking" ] || fail "it needs Python 3.10 or newer, and none of python3.14 to python3.10 or python3 is one. \
Install one beside the system's own, python3.11 for instance."
    version=$("$incomplete" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    set --
    for module in $lacking; do
        case $module in
        venv | ensurepip) remedy="on Debian and Ubuntu install python$version-venv, elsewhere" ;;
        *) remedy="" ;;
        esac
        set -- "$@" "$incomplete lacks the module $module; ${remedy:+$remedy }install your distribution's package for it."
    done
    fail "$@"
}

check_work_directory() {
    mkdir -p "$work" 2>/dev/null || fail "the work directory $work cannot be created."
    probe=$work/.install-probe
    printf '#!/bin/sh\nexit 0\n' 2>/dev/null >"$probe" || fail "the work directory $work is not writable."
    chmod 0755 "$probe"
    "$probe" 2>/dev/null
    ran=$?
    rm -f "$probe"
    [ "$ran" -eq 0 ] || fail "programs cannot be executed in the work directory $work; mount it without noexec."
}

check_free_space() {
    free_mb=$("$python" -c 'import shutil, sys; print(shutil.disk_usage(sys.argv[1]).free >> 20)' "$work") || free_mb=0
    [ "$free_mb" -ge "$needed_mb" ] ||
        fail "it needs $needed_mb MB of free space for $work, and there are $free_mb MB; free some space."
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

# Makes pip trust the certificate authorities of this core device, unless PIP_CERT names others.
trust_authorities() {
    [ -z "${PIP_CERT:-}" ] && [ -n "${AWS_CA_BUNDLE:-}${GG_ROOT_CA_PATH:-}" ] || return 0
    "$work/$environment/bin/python" "$package/src/install_authorities.py" "$scratch/authorities.pem" || return 0
    PIP_CERT=$scratch/authorities.pem
    export PIP_CERT
    # Those are in that file, and would be taken instead of it.
    unset REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
}

# Fills the environment. Where the artifact has a folder `wheelhouse`, its wheels are taken, and no network is needed.
install_packages() {
    if [ -d "$package/wheelhouse" ]; then
        set -- --no-index --find-links "$package/wheelhouse"
    else
        trust_authorities
        set --
    fi
    "$work/$environment/bin/python" -m pip install --require-hashes --no-cache-dir --no-input --no-user \
        --disable-pip-version-check --quiet --requirement "$requirements" "$@" && return 0
    set -- "the packages in requirements.txt could not be installed; see pip's messages above."
    "$python" -c 'import sys; sys.exit(sys.maxsize < 2**32)' ||
        set -- "$@" "a 32-bit Python builds awscrt from source: that takes cmake, a C compiler and Python's headers."
    fail "$@"
}

make_environment() {
    check_free_space
    # The one in force is never touched, even if it has become unusable.
    [ "$environment" != "$in_force" ] || environment=$environment-$(date +%s)
    rm -rf "${work:?}/$environment"
    scratch=$work/install-scratch
    rm -rf "$scratch"
    trap 'rm -rf "$scratch" "$work/$environment"' EXIT
    trap 'exit 1' HUP INT TERM
    mkdir -p "$scratch" || fail "the work directory $work is not writable."
    # The user that runs this may have no home, and the device's /tmp may be small.
    export HOME="$scratch" TMPDIR="$scratch"
    "$python" -m venv "$work/$environment" >"$scratch/venv.log" 2>&1 || {
        cat "$scratch/venv.log" >&2
        fail "$python could not create a virtual environment in $work; see its messages above."
    }
    install_packages
    finds_packages "$environment" || fail "$python does not find the packages that were installed in $work/$environment."
    sync # a power cut must not leave a mark on what is only half on the disk
    : >"$work/$environment/complete"
    trap - EXIT HUP INT TERM
    rm -rf "$scratch"
}

# Writes the command: without arguments it runs the component, and signals reach that. PYTHONPATH stands in it because
# sudo, through which a nucleus starts components, takes it from the environment.
write_command() {
    {
        printf '#!/bin/sh\n# Runs ClientDevicePruner, or one of its commands: "pruner --help". Made by install.sh.\n'
        printf 'work=%s\nPYTHONPATH=%s\n' "$(quoted "$work")" "$(quoted "$package/src")"
        cat <<'COMMAND'
PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export PYTHONPATH PYTHONSAFEPATH PYTHONUNBUFFERED
{ cd "${PWD:-/}" || cd /; } 2>/dev/null # the current directory may be gone
[ $# -eq 0 ] || export PYTHONDONTWRITEBYTECODE=1 # root's files the component could not remove
exec "$work/venv/bin/python" -m client_device_pruner --work-dir "$work" "$@"
COMMAND
    } >"$work/pruner.new" || fail "the command $work/pruner could not be written."
    chmod 0755 "$work/pruner.new"
    mv -f "$work/pruner.new" "$work/pruner" || fail "the command $work/pruner could not be replaced."
}

# Replaces the link in one step: there is always one in force.
switch_to_environment() {
    rm -f "$work/venv.new"
    ln -s "$environment" "$work/venv.new"
    "$work/venv.new/bin/python" -c 'import os, sys; os.replace(*sys.argv[1:])' "$work/venv.new" "$work/venv" ||
        fail "the link $work/venv could not be switched to the environment $environment."
}

# Keeps the environment that was in force for a way back.
remove_old_environments() {
    for old in "$work"/venv-*; do
        case ${old##*/} in
        "$environment" | "$in_force") ;;
        *) rm -rf "$old" ;;
        esac
    done
}

[ $# -eq 2 ] || [ $# -eq 3 ] || fail "install.sh takes the package directory and the work directory."
package=$(cd "$1" 2>/dev/null && pwd) || fail "the package directory $1 cannot be read."
requirements=$package/requirements.txt
[ -r "$requirements" ] || fail "$requirements is missing in the artifact."
work=${2%/}
check_work_directory
work=$(cd "$work" && pwd)
in_force=$(readlink "$work/venv" 2>/dev/null) || in_force=""

if [ $# -eq 3 ]; then
    environment=$3
else
    environment=venv-$(sha256sum <"$requirements" | cut -c1-12)
    case $in_force in
    "$environment"*) is_usable "$in_force" && environment=$in_force ;;
    esac
    is_usable "$environment" || { find_python && make_environment; }
fi
write_command
if [ "$environment" != "$in_force" ]; then
    switch_to_environment
    remove_old_environments
fi
