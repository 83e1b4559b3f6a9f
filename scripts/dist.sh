#!/usr/bin/env bash
# Builds what a release has, in target/dist: a wheel with the program and the Python modules, a tarball, the list
# of what is in them (CycloneDX) and checksums. Then runs what `make demo` runs from the wheel, in a Debian that
# has Python and nothing else.
#
#   scripts/dist.sh [build|try|old-cpu]     all three if none is named
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TARGET=${CARGO_TARGET_DIR:-target}
readonly TARGET DIST=$TARGET/dist DATA=python/firstdiff.data ROOT=$TARGET/dist-root
readonly BASELINE=$TARGET/dist-baseline/release/firstdiff
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
TRIPLE=$(rustc -vV | sed -n 's/^host: //p')
readonly VERSION TRIPLE NAME=firstdiff-$VERSION-$TRIPLE

fail() {
    echo "dist.sh: $1" >&2
    exit 1
}

build() {
    rm -rf "$DIST" "$DATA"
    mkdir -p "$DIST"
    local maturin flags=''
    maturin=$(scripts/venv.sh maturin 'maturin>=1.9,<2')
    if [[ $TRIPLE == x86_64-* ]]; then
        RUSTFLAGS='-Ctarget-cpu=x86-64-v3' cargo build --locked --release --features portable
        mkdir -p "$DATA/scripts"
        strip -o "$DATA/scripts/firstdiff-x86-64-v3" "$TARGET/release/firstdiff"
        flags='-Ctarget-cpu=x86-64-v2'
    fi
    # llama.cpp is compiled for the other kind of CPU too.
    local arguments=(--locked --release --strip --features portable)
    arguments+=(--target-dir "$(realpath "$TARGET")/dist-baseline" --out "$(realpath "$DIST")")
    (cd python && RUSTFLAGS=$flags "$maturin" -m maturin build "${arguments[@]}")
    local folder=$DIST/$NAME
    mkdir -p "$folder"
    cp -r python include kernels LICENSE-MIT LICENSE-APACHE README.md CHANGELOG.md "$folder"
    rm -rf "$folder/python/firstdiff.data" "$folder/python/__pycache__"
    strip -o "$folder/firstdiff" "$BASELINE"
    [[ ! -d $DATA ]] || cp "$DATA"/scripts/* "$folder"
    pack "$DIST" "$NAME"
    rm -rf "$folder" "$DATA"
    cat "$DIST/SHA256SUMS"
}

# The tarball, the list of parts that the wheel has, and the checksums of all. Python: tar and sha256sum are not the
# same on every system.
pack() {
    python3 - "$@" <<'PYTHON'
import hashlib, pathlib, sys, tarfile, zipfile

dist, name = pathlib.Path(sys.argv[1]), sys.argv[2]
wheel = zipfile.ZipFile(next(dist.glob("*.whl")))
[parts] = [part for part in wheel.namelist() if part.endswith(".cyclonedx.json")]
(dist / f"{name}.cdx.json").write_bytes(wheel.read(parts))

def owned_by_nobody(entry):
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry

with tarfile.open(dist / f"{name}.tar.gz", "w:gz") as tarball:
    tarball.add(dist / name, name, filter=owned_by_nobody)
files = sorted(file for ending in ("whl", "tar.gz", "cdx.json") for file in dist.glob(f"*.{ending}"))
lines = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
(dist / "SHA256SUMS").write_text("".join(lines))
PYTHON
}

# A folder with a Debian in it that has Python: no Rust, no cmake, no libclang, no compiler.
empty_system() {
    [[ $(id -u) == 0 ]] || fail 'a system of its own needs root; run it as root, or only: scripts/dist.sh build'
    command -v debootstrap >/dev/null || fail 'debootstrap is missing; install it (apt-get install debootstrap)'
    [[ -e $ROOT/made ]] && return
    rm -rf "$ROOT"
    debootstrap --variant=minbase --include=python3,python3-venv bookworm "$ROOT" >"$DIST/debootstrap.log" ||
        fail "no Debian could be made; see $DIST/debootstrap.log"
    touch "$ROOT/made"
}

# Mounts and variables are the command's alone.
in_empty_system() {
    # shellcheck disable=SC2016 # for the inner shell
    unshare --mount --propagation private /bin/sh -c '
        mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" &&
            exec chroot "$0" /usr/bin/env -i HOME=/root PATH=/opt/firstdiff/bin:/usr/bin:/bin "$@"' "$ROOT" "$@"
}

try() {
    [[ -e $DIST/SHA256SUMS ]] || fail 'nothing is built; run scripts/dist.sh build first'
    empty_system
    rm -rf "$ROOT/wheels" "$ROOT/opt/firstdiff" "$ROOT/root/.cache"
    mkdir "$ROOT/wheels"
    cp "$DIST"/*.whl "$ROOT/wheels"
    python3 -m pip download --quiet --only-binary :all: --python-version 3.11 --dest "$ROOT/wheels" 'numpy>=1.22'
    # shellcheck disable=SC2016 # for the inner shell
    in_empty_system /bin/sh -c 'for tool in cargo rustc cmake cc c++ g++ clang++ ld objcopy; do
        ! command -v $tool || exit 1; done' || fail 'what stands above is in the empty system'
    in_empty_system python3 -m venv /opt/firstdiff
    in_empty_system pip install --quiet --no-index --find-links /wheels firstdiff
    # The hooks need torch, so they are only found.
    in_empty_system python -c 'import firstdiff, importlib.util as found
hooks = [found.find_spec(f"firstdiff_{name}") for name in ("gguf", "pt", "transformers", "vllm")]
assert all(hooks) and firstdiff.Trace, hooks'
    ! grep -qw avx2 /proc/cpuinfo || in_empty_system firstdiff doctor | grep -qw AVX2 ||
        fail 'this CPU has AVX2, and the program for it was not taken'
    local begin=$SECONDS
    in_empty_system firstdiff run
    local verdict=$((SECONDS - begin)) exit=0
    in_empty_system firstdiff run --fault rope-pairs-interleaved || exit=$?
    ((exit == 1)) || fail "the planted fault: exit status $exit, not 1"
    echo
    echo "from the wheel, without a compiler: verdict after $verdict s"
    ((verdict < 60)) || fail 'the verdict took more than 60 s'
}

# The program on a CPU of 2008, which has SSE4.2 and no AVX.
old_cpu() {
    [[ $TRIPLE == x86_64-* ]] || return 0
    command -v qemu-x86_64 >/dev/null || fail 'qemu-x86_64 is missing; install it (apt-get install qemu-user)'
    local exit=0
    FIRSTDIFF_IN_PROCESS=1 qemu-x86_64 -cpu Nehalem "$BASELINE" run
    FIRSTDIFF_IN_PROCESS=1 qemu-x86_64 -cpu Nehalem "$BASELINE" \
        run --fault rope-pairs-interleaved || exit=$?
    ((exit == 1)) || fail "the planted fault on an old CPU: exit status $exit, not 1"
}

case "${1-all}" in
    all) build && try && old_cpu ;;
    build) build ;;
    try) try ;;
    old-cpu) old_cpu ;;
    *) fail "$1 is none of build, try and old-cpu" ;;
esac
