#!/usr/bin/env bash
# Freespace on a Jetson with JetPack, without a container: a virtual environment that sees JetPack's TensorRT, PyCUDA built
# against JetPack's CUDA, and at the end `freespace doctor`. Run it again after an update: what fits already is left as it is.
set -euo pipefail

usage() {
    cat <<'END'
usage: install.sh [--prefix DIR] [--extras LIST] [--service] [--container] [--dry-run]

  --prefix DIR    where the virtual environment goes (/opt/freespace)
  --extras LIST   optional parts of Freespace, such as web,foxglove (web)
  --service       also: user, settings and systemd units; started at the next boot
  --container     within an image that is being built: no board to look at, no doctor
  --dry-run       print what would be done; look, but change nothing
END
}

prefix=/opt/freespace extras=web service=false container=false dry=false
root=${FREESPACE_ROOT:-} # of the file system that is looked at; another one in tests
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

say() { printf '== %s\n' "$1"; }

# Runs a command, or with --dry-run prints it.
run() {
    if $dry; then
        printf '+'
        printf ' %q' "$@"
        printf '\n'
    else
        "$@"
    fi
}

# The same for one that needs to be root.
run_as_root() {
    if [[ $(id -u) == 0 ]]; then
        run "$@"
    elif command -v sudo >/dev/null; then
        run sudo "$@"
    else
        fail "'$*' needs root, and there is no sudo; run this script as root"
    fi
}

while (($#)); do
    case $1 in
    --prefix | --extras)
        [[ -n ${2:-} ]] || fail "$1 wants a value" 2
        if [[ $1 == --prefix ]]; then prefix=$2; else extras=$2; fi
        shift
        ;;
    --service) service=true ;;
    --container) container=true ;;
    --dry-run) dry=true ;;
    -h | --help)
        usage
        exit
        ;;
    *)
        usage >&2
        fail "unknown option $1" 2
        ;;
    esac
    shift
done
[[ $prefix == /* ]] || fail "--prefix $prefix: give an absolute path" 2
if $service && $container; then fail "--service and --container exclude each other: an image has no systemd" 2; fi
if $service && [[ $prefix != /opt/freespace ]]; then fail "--service: the units run /opt/freespace; leave --prefix out" 2; fi
[[ -f $source_dir/setup.py ]] || fail "$source_dir: is not Freespace's folder; run the script where it lies in it"

check_board() {
    local release major minor
    release=$(cat "$root/etc/nv_tegra_release" 2>/dev/null) ||
        fail "this is no Jetson, or not flashed with Jetson Linux: there is no /etc/nv_tegra_release. Elsewhere: pip install ."
    [[ $release =~ R([0-9]+)[^,]*,\ REVISION:\ ([0-9]+) ]] ||
        fail "/etc/nv_tegra_release says no release of Jetson Linux: ${release%%$'\n'*}"
    major=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
    if ((major < 36 || (major == 36 && minor < 4))); then
        fail "Jetson Linux $major.$minor is too old: its TensorRT is 8 or older. Flash JetPack 6.1 (Jetson Linux 36.4) or later"
    fi
    say "$(tr -d '\0' <"$root/proc/device-tree/model" 2>/dev/null || echo Jetson), Jetson Linux $major.$minor"
}

install_packages() {
    local missing=() package
    for package in python3-venv python3-dev build-essential; do
        [[ $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) == *"ok installed"* ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "packages: ${missing[*]}"
    run_as_root apt-get update
    run_as_root apt-get install -y --no-install-recommends "${missing[@]}"
}

find_cuda() {
    local candidate nvcc=
    for candidate in "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "$(command -v nvcc || true)" "$root/usr/local/cuda/bin/nvcc"; do
        if [[ -x $candidate ]]; then
            nvcc=$candidate
            break
        fi
    done
    [[ -n $nvcc ]] || fail "no nvcc: the CUDA toolkit is not installed. sudo apt install nvidia-jetpack"
    cuda_release=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p') || true
    [[ -n $cuda_release ]] || fail "$nvcc does not work: it says no release. sudo apt install --reinstall nvidia-jetpack"
    cuda_home=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
    say "CUDA $cuda_release in $cuda_home"
}

check_python() {
    local version
    command -v python3 >/dev/null || fail "there is no python3. sudo apt install python3"
    version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    case $version in
    3.1[0-3]) ;;
    *) fail "python3 is $version; Freespace is made for 3.10 to 3.13, and JetPack's TensorRT for JetPack's own python3" ;;
    esac
    # While an image is built there is no driver, and without one the bindings are there and do not load.
    local how='import tensorrt; print(tensorrt.__version__)'
    if $container; then how='import importlib.metadata as m; print(m.version("tensorrt"))'; fi
    local tensorrt why
    if ! tensorrt=$(python3 -c "$how" 2>&1); then
        why=${tensorrt##*$'\n'}
        fail "python3 has no TensorRT that works ($why). sudo apt install python3-libnvinfer, or all: nvidia-jetpack"
    fi
    ((${tensorrt%%.*} >= 10)) || fail "TensorRT $tensorrt is too old; 10.3 comes with JetPack 6.1. Update JetPack"
    say "Python $version, TensorRT $tensorrt"
}

# The folder itself, or what there is of the way to it.
nearest() {
    local folder=$1
    until [[ -e $folder ]]; do folder=$(dirname "$folder"); done
    printf '%s' "$folder"
}

make_environment() {
    if [[ -x $prefix/bin/python ]]; then
        grep -qi 'include-system-site-packages *= *true' "$prefix/pyvenv.cfg" ||
            fail "$prefix is a virtual environment that hides JetPack's TensorRT; remove it, or choose another --prefix"
    else
        [[ ! -e $prefix || -z $(ls -A "$prefix") ]] || fail "$prefix is there and is no virtual environment; choose another --prefix"
        say "virtual environment $prefix"
        if [[ ! -w $(nearest "$prefix") ]]; then
            run_as_root install -d -o "$(id -u)" -g "$(id -g)" "$prefix"
        fi
        run python3 -m venv --system-site-packages "$prefix"
    fi
    [[ -w $prefix || ! -e $prefix ]] || fail "$prefix cannot be written; run this script as its owner"
}

# PyCUDA has no wheels. One that was built against another CUDA loads, and fails later: what it was built against is kept.
install_pycuda() {
    local mark=$prefix/pycuda-cuda
    if [[ -f $mark && $(<"$mark") == "$cuda_release" ]]; then
        say "PyCUDA: built against CUDA $cuda_release already"
        return
    fi
    say "PyCUDA against CUDA $cuda_release: some minutes"
    run env "CUDA_ROOT=$cuda_home" "PATH=$cuda_home/bin:$PATH" "LIBRARY_PATH=$cuda_home/lib64/stubs:${LIBRARY_PATH:-}" \
        "$prefix/bin/python" -m pip install --no-binary pycuda --no-cache-dir --force-reinstall --no-deps 'pycuda>=2024.1'
    run "$prefix/bin/python" -m pip install 'pycuda>=2024.1' # what it depends on
    if ! $dry; then printf '%s\n' "$cuda_release" >"$mark"; fi
}

install_freespace() {
    say "Freespace from $source_dir"
    run "$prefix/bin/python" -m pip install --upgrade --constraint "$source_dir/constraints.txt" "${source_dir}[${extras}]"
}

install_service() {
    local here=$source_dir/launch/jetson units=/etc/systemd/system settings=/etc/freespace/freespace.yaml
    say "systemd units"
    id freespace >/dev/null 2>&1 || run_as_root useradd --system --groups video,render freespace
    if [[ -e $root$settings ]]; then
        say "$settings stays as it is"
    else
        run_as_root install -D -o freespace -m 600 "$here/freespace.yaml" "$settings"
    fi
    run_as_root install -D -m 644 -t "$units" "$source_dir/launch/freespace.service" "$here/freespace-build.service"
    run_as_root install -D -m 644 "$here/jetson.conf" "$units/freespace.service.d/jetson.conf"
    run_as_root systemctl daemon-reload
    run_as_root systemctl enable freespace-build freespace
}

if ! $container; then check_board; fi
find_cuda
install_packages
check_python
make_environment
install_pycuda
install_freespace
if $service; then install_service; fi
if $container; then exit; fi
say "freespace doctor"
run env "CUDA_HOME=$cuda_home" "$prefix/bin/freespace" doctor || fail "installed, but 'freespace run' does not work here yet; see above"
if $dry; then exit; fi
say "done. Now: $prefix/bin/freespace build, then $prefix/bin/freespace run (docs/jetson.md)"
