# Sourced by the scripts beside this folder: makes .venv and installs the project into it when its needs change.
# shellcheck shell=bash
# Gives: $root (the repository), $python (the environment's interpreter), ensure_environment EXTRA.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
venv="$root/.venv"
python="$venv/bin/python"

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    exit 1
}

# ensurepip is what Debian leaves out of python3.
is_new_enough() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_interpreter() {
    local candidate candidates=(python3 python3.14 python3.13 python3.12 python3.11)
    [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if is_new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer with its venv module was found; install one (on Debian and Ubuntu:\
 apt-get install python3-venv) or name it: PYTHON=/path/to/python3 $0"
}

# What an installation depends on; the folder too, because an editable installation names it.
needs() {
    { printf '%s\n' "$root"; cat "$root/pyproject.toml" "$root/constraints.txt"; } | "$1" -c '
import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

is_installed() { # EXTRA
    [[ -x "$python" && ! -e "$venv/.making" && -f "$venv/.installed-$1" ]] &&
        [[ "$(cat "$venv/.installed-$1")" == "$(needs "$python")" ]]
}

make_venv() {
    local interpreter
    interpreter="$(find_interpreter)"
    rm -rf "$venv"
    mkdir "$venv" || fail "cannot write to $root"
    : >"$venv/.making" # still there after an interruption: then the folder is made again
    "$interpreter" -m venv "$venv" || fail "$interpreter could not make $venv (its message is above)"
    rm "$venv/.making"
}

# Install the project with an extra (core: none) under the constraints, unless exactly that was done before.
ensure_environment() { # EXTRA
    local extra="$1" target="$root"
    is_installed "$extra" && return
    if command -v flock >/dev/null; then # two runs at once: the second waits, and then finds the work done
        exec 9<"$root"
        flock 9
        is_installed "$extra" && exec 9<&- && return
    fi
    if [[ -e "$venv/.making" ]] || ! "$python" -c '' 2>/dev/null; then make_venv; fi
    is_new_enough "$python" || fail "$venv holds a Python older than 3.11; remove that folder and run again"
    [[ "$extra" == core ]] || target="$root[$extra]"
    echo "installing into $venv (once)" >&2
    rm -f "$venv"/.installed-*
    "$python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "$target" >&2 ||
        fail "pip could not install the project (its message is above); run again to retry"
    needs "$python" >"$venv/.installed-core"
    needs "$python" >"$venv/.installed-$extra" # last: whoever sees it can rely on it
    exec 9<&-
}
