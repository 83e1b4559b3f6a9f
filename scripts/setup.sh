#!/usr/bin/env bash
# Installs what building firstdiff needs and this machine lacks. Asks nothing, and does nothing the
# second time. Rust itself is left to rustup.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/setup.sh [--tests] [--check]

Looks for what building firstdiff needs and installs what is missing through apt-get (with sudo when
not root). Where there is no apt, it lists the packages to install.

  --tests   what the tests need as well: clang, the second compiler of include/firstdiff.h, and
            Chromium with its driver, in which the pages of --html are opened
  --check   install nothing; exit 1 if something is missing
  --help    this text

exit status: 0 all there, 1 something is missing or could not be installed, 2 something only you
can install (Rust, or any package where there is no apt or no right to use it)
TEXT
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT

# One row a thing: name | function that finds it | apt | dnf | pacman | brew
readonly THINGS='
C compiler|find_c_compiler|gcc libc6-dev|gcc|gcc|gcc
C++ compiler|find_cxx_compiler|g++|gcc-c++|gcc|gcc
objcopy|find_objcopy|binutils|binutils|binutils|binutils
cmake|find_cmake|cmake|cmake|cmake|cmake
make|find_make|make|make|make|make
git|find_git|git|git|git|git
libclang|find_libclang|libclang-dev|clang-devel|clang|llvm
python3 with venv|find_python|python3 python3-venv|python3|python|python'
# The same of what only the tests need.
readonly TEST_THINGS='
clang|find_clang|clang|clang|clang|llvm
Chromium|find_chromium|chromium chromium-driver|chromium chromedriver|chromium|chromium chromedriver'

main() {
    local check=no things=$THINGS
    while (($#)); do
        case "$1" in
            --check) check=yes ;;
            --tests) things=$THINGS$TEST_THINGS ;;
            -h | --help) usage; exit 0 ;;
            *) usage >&2; exit 2 ;;
        esac
        shift
    done

    local rust=found missing
    find_rust || rust=missing
    look "$things"
    missing=$MISSING
    if [[ $rust == found && -z $missing ]]; then
        echo 'nothing to install'
        return
    fi
    if [[ $check == yes ]]; then
        exit 1
    fi
    if [[ -n $missing ]]; then
        install_all "$missing"
    fi
    if [[ $rust == missing ]]; then
        exit 2
    fi
    echo 'everything is there'
}

# --- looking ---------------------------------------------------------------------------------

# Prints one line per thing of the rows given; leaves the missing ones in MISSING.
look() {
    local name finder packages detail
    MISSING=''
    while IFS='|' read -r name finder packages; do
        [[ -n $name ]] || continue
        if detail=$("$finder"); then
            echo "found $name: $detail"
        else
            echo "missing $name"
            MISSING+="$name|$finder|$packages"$'\n'
        fi
    done <<<"$1"
}

find_rust() {
    local found wanted where line
    while IFS= read -r line; do
        [[ $line =~ ^rust-version\ =\ \"(.*)\" ]] && wanted=${BASH_REMATCH[1]}
    done <"$ROOT/Cargo.toml"
    if ! command -v cargo >/dev/null; then
        where="${CARGO_HOME:-${HOME-}/.cargo}"
        if [[ -x $where/bin/cargo ]]; then
            echo "missing cargo: it is in $where/bin, which is not on PATH; run: . $where/env"
        else
            echo 'missing cargo: install Rust with'
            echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
            echo "then open a new shell, or run: . $where/env"
        fi
        return 1
    fi
    if ! found=$(cargo --version 2>&1 </dev/null); then
        echo "missing cargo: it does not start ($(first_line "$found")); run: rustup default stable"
        return 1
    fi
    if is_older "$found" "$wanted"; then
        echo "missing cargo $wanted or newer: $found is too old; run: rustup update stable"
        return 1
    fi
    echo "found $found"
}

# Whether "cargo A.B.C (...)" is older than "A.B".
is_older() {
    local has=${1#cargo } wants=$2
    [[ $has =~ ^([0-9]+)\.([0-9]+) ]] || return 1
    local major=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
    ((major < ${wants%%.*} || (major == ${wants%%.*} && minor < ${wants#*.})))
}

# The C compiler also links every Rust program, under the name cc.
find_c_compiler() {
    compiles c '#include <stdlib.h>' cc
}

find_cxx_compiler() {
    local compiler
    local -a compilers=(c++ g++ clang++)
    # The build takes CXX and no other where it is set.
    [[ -z ${CXX-} ]] || compilers=("$CXX")
    for compiler in "${compilers[@]}"; do
        compiles c++ '#include <vector>' "$compiler" && return
    done
    return 1
}

# libclang alone does not bring the compiler.
find_clang() {
    compiles c '#include <stdlib.h>' clang >/dev/null && compiles c++ '#include <vector>' clang++
}

# A browser by one of its names, and the program that drives it.
find_chromium() {
    local browser
    version_of chromedriver >/dev/null || return 1
    for browser in chromium chromium-browser google-chrome chrome; do
        version_of "$browser" && return
    done
    return 1
}

# Having a compiler is not enough: clang++ without the C++ library's headers is a common find.
compiles() {
    local language=$1 program=$2 version
    local -a compiler
    read -ra compiler <<<"$3"
    command -v "${compiler[0]}" >/dev/null || return 1
    "${compiler[@]}" -x "$language" -fsyntax-only - <<<"$program" 2>/dev/null || return 1
    version=$("${compiler[@]}" --version 2>/dev/null </dev/null) || return 1
    first_line "$version"
}

find_objcopy() { version_of objcopy; }
find_cmake() { version_of cmake; }
find_make() { version_of make; }
find_git() { version_of git; }

find_python() {
    # Debian's python3 without python3-venv has the module venv but not ensurepip, which it needs.
    python3 -c 'import ensurepip, venv' 2>/dev/null </dev/null && version_of python3
}

version_of() {
    local version
    command -v "$1" >/dev/null || return 1
    # What it says on its standard error is no version.
    version=$("$1" --version 2>/dev/null </dev/null) || return 1
    first_line "$version"
}

first_line() { printf '%s\n' "${1%%$'\n'*}"; }

# bindgen loads libclang when llama.cpp's bindings are built. The folders are those where clang-sys
# looks; clang's own headers (stddef.h) have to be there as well.
find_libclang() {
    local place library folder
    local -a headers
    local -a places=(
        /usr/lib/llvm*/lib /usr/local/llvm*/lib /usr/lib/*-linux-gnu /usr/lib64 /usr/lib
        /usr/local/lib64 /usr/local/lib /usr/local/opt/llvm*/lib /opt/homebrew/opt/llvm*/lib
        /Library/Developer/CommandLineTools/usr/lib
    )
    if [[ -n ${LIBCLANG_PATH-} ]]; then
        places=("$LIBCLANG_PATH" "${LIBCLANG_PATH%/*}" "${places[@]}")
    fi
    for place in "${places[@]}"; do
        for library in "$place"/libclang.so* "$place"/libclang-[0-9]*.so* "$place"/libclang.dylib; do
            [[ -e $library ]] || continue
            folder=$(real_folder "$library")
            headers=("$folder"/clang/*/include/stddef.h /usr/lib/llvm*/lib/clang/*/include/stddef.h
                /usr/lib/clang/*/include/stddef.h)
            any_exists "${headers[@]}" || continue
            echo "$library"
            return
        done
    done
    return 1
}

real_folder() { (cd -P "${1%/*}" && pwd); }

any_exists() {
    local path
    for path; do
        [[ ! -e $path ]] || return 0
    done
    return 1
}

# --- installing ------------------------------------------------------------------------------

# Installs the packages of the missing rows, or says which they are and exits.
install_all() {
    local rows=$1 name apt
    local -a packages=() names=() more
    if ! command -v apt-get >/dev/null; then
        list_for_others "$rows"
        exit 2
    fi
    while IFS='|' read -r name _ apt _; do
        [[ -n $name ]] || continue
        read -ra more <<<"$apt"
        packages+=("${more[@]}")
        names+=("$name")
    done <<<"$rows"

    become_root "${packages[@]}"
    for name in "${names[@]}"; do
        echo "installing $name"
    done
    if ! apt_install "${packages[@]}"; then
        echo "apt-get could not install ${packages[*]}: see its messages above; install them by" \
            'hand, then run scripts/setup.sh again' >&2
        exit 1
    fi
    hash -r
    confirm "$rows"
}

# Fills AS_ROOT with what to put before a command so that it runs as root; exits if nothing can.
become_root() {
    AS_ROOT=(env)
    if ((EUID == 0)); then
        return
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        AS_ROOT=(sudo -n env)
    elif command -v sudo >/dev/null && [[ -t 0 && -z ${CI-} ]]; then
        echo 'sudo may want your password'
        AS_ROOT=(sudo env)
    else
        echo "not root, and sudo does not work without a password; run: apt-get install $*" >&2
        exit 2
    fi
}

# A fresh machine or container has no package lists, and old lists name packages that are gone:
# the lists are fetched when a package is unknown or the installation fails, and not otherwise.
apt_install() {
    local package updated=no
    for package; do
        if ! apt-cache show "$package" >/dev/null 2>&1; then
            apt_update
            updated=yes
            break
        fi
    done
    if apt_get install -y --no-install-recommends --no-remove "$@"; then
        return
    fi
    if [[ $updated == no ]]; then
        apt_update
    fi
    echo 'apt-get failed; trying once more'
    apt_get install -y --no-install-recommends --no-remove "$@"
}

# A failed update is no end: the old lists may do.
apt_update() {
    echo 'updating the package lists'
    apt_get update || echo 'apt-get update failed; going on with the lists there are'
}

# The lock is waited for: a machine that has just started is often updating itself.
apt_get() {
    "${AS_ROOT[@]}" DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l \
        apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null
}

# apt-get's word is not taken for it: what was missing is looked for again.
confirm() {
    local name finder packages detail failed=no
    while IFS='|' read -r name finder packages; do
        [[ -n $name ]] || continue
        if detail=$("$finder"); then
            echo "found $name: $detail"
        else
            echo "$name is still missing after installing ${packages%%|*}: is a broken one first on" \
                'PATH, or named by CXX or LIBCLANG_PATH?' >&2
            failed=yes
        fi
    done <<<"$1"
    [[ $failed == no ]] || exit 1
}

list_for_others() {
    local name dnf pacman brew
    local all_dnf='' all_pacman='' all_brew=''
    while IFS='|' read -r name _ _ dnf pacman brew; do
        [[ -n $name ]] || continue
        all_dnf+=" $dnf" all_pacman+=" $pacman" all_brew+=" $brew"
    done <<<"$1"
    echo 'there is no apt-get here; install what is missing with one of' >&2
    echo "  dnf install$all_dnf" >&2
    echo "  pacman -S$all_pacman" >&2
    echo "  brew install$all_brew" >&2
    echo 'then run scripts/setup.sh again' >&2
}

main "$@"
