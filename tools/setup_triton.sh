#!/bin/sh
# A real Triton Inference Server without docker and without a GPU, in an environment of its own: `.venv-triton/`.
# The server comes in the nvidia-pytriton wheel (Triton 2.51, the newest that PyPI has); of pytriton itself nothing is
# used. The environment needs NumPy 1: with NumPy 2 that server's Python backend reads tensors with stride 0, silently.
# ONNX Runtime and the tokenizer are those of walvec itself, so that vectors can be compared bit for bit. GPU=1 adds
# PyTorch, for `make bench-gpu`.
set -eu
cd "$(dirname "$0")/.."

target=.venv-triton
python=${PYTHON:-python3}

fail() {
    echo "setup: $*" >&2
    exit 1
}

[ "$(uname -s)" = Linux ] || fail "the Triton wheel is made for Linux only."
command -v "$python" >/dev/null || fail "$python is missing: install Python 3.11 or newer, or set PYTHON to one."

# pinned NAME: the requirement as walvec has it.
pinned() {
    version=$(sed -n "s/^$1==//p" constraints.txt)
    [ -n "$version" ] || fail "constraints.txt does not pin $1."
    echo "$1==$version"
}

if ! "$target/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -c 'import ensurepip' 2>/dev/null || fail "Python's ensurepip is missing: run \`make setup\` first."
    "$python" -m venv --clear "$target"
fi
echo "setup: installing Triton into $target/ (about 20 s, 360 MB) ..."
pip="$target/bin/python -m pip install -qq --disable-pip-version-check"
$pip 'numpy==1.26.4' "$(pinned onnxruntime)" "$(pinned tokenizers)" ||
    fail "pip could not install ONNX Runtime, see above: is a package index reachable?"
# Its own dependencies are those of the Python API, which is not used.
$pip --no-deps 'nvidia-pytriton==0.7.0' || fail "pip could not install the Triton server, see above."

# `make bench-gpu` needs PyTorch: that of $PYTHON where it has one (NumPy 1 of this environment goes before its own).
if [ "${GPU:-}" = 1 ] && ! "$target/bin/python" -c 'import torch' 2>/dev/null; then
    where=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' 2>/dev/null || true)
    if [ -n "$where" ]; then
        echo "$where" >"$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/torch.pth"
    else
        $pip torch 'numpy==1.26.4' || fail "pip could not install PyTorch, see above."
    fi
fi

# The wheel keeps the stub, the process in which a Python model runs, apart from the backend; the server wants one place.
site=$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
minor=$("$target/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
server="$site/pytriton/tritonserver"
stub="$server/python_backend_stubs/$minor/triton_python_backend_stub"
[ -x "$server/bin/tritonserver" ] || fail "the Triton wheel has no server in $server."
[ -f "$stub" ] || fail "the Triton wheel has no stub for Python $minor: set PYTHON to 3.11, 3.12 or 3.13."
backend="$target/backends/python"
mkdir -p "$backend"
ln -sf "$server/bin/tritonserver" "$target/bin/tritonserver"
for file in "$server"/backends/python/libtriton_python.so "$server"/backends/python/triton_python_backend_utils.py "$stub"
do
    ln -sf "$file" "$backend/"
done
# A Python program runs with the library of the very same Python, or the stub takes the distribution's.
"$target/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))' >"$target/libdir"
touch "$target/.complete"
echo "setup: Triton is ready in $target/"
