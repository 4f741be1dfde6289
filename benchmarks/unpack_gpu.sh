#!/usr/bin/env bash
# Copied by pack_gpu.sh into every part as unpack.sh:  bash unpack.sh TARGET
# Keeps this part's files on the machine and installs into TARGET whatever is complete by now; TARGET goes into PYTHONPATH.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${1:?a folder to install into}
store=${POSE2SEG_PACK:-/tmp/pose2seg_gpu_pack}
python=${PYTHON:-python3}
mkdir -p -m 700 "$store"
mkdir -p "$target"
for file in "$here"/*; do
  case ${file##*/} in unpack.sh) ;; *) cp "$file" "$store/" ;; esac
done

cd "$store"
missing=$(sha256sum --check --quiet MANIFEST 2>/dev/null | cut -d: -f1 || true)
complete() { # whether every piece of this file is here and whole
  local pieces
  pieces=$(cut -c67- MANIFEST | grep -E "^${1//./\\.}(\.[0-9]{3})?$") || return 1
  ! grep -qxF "$pieces" <<<"$missing"
}

for wheel in $(cut -c67- MANIFEST | grep '\.whl$'); do
  if complete "$wheel"; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$target" "$wheel"
  else
    echo "not here yet: $wheel"
  fi
done
libraries=$target/tensorrt_rtx_libs
for name in libtensorrt_rtx.so.1 libtensorrt_onnxparser_rtx.so.1; do
  if complete "$name.xz"; then
    mkdir -p "$libraries"
    touch "$libraries/__init__.py"
    [ -s "$libraries/$name" ] || cat "$name.xz"* | "$python" -c '
import lzma, shutil, sys
with lzma.open(sys.stdin.buffer) as packed, open(sys.argv[1], "wb") as plain:
    shutil.copyfileobj(packed, plain, 1 << 22)' "$libraries/$name"
  else
    echo "not here yet: $name (send the other parts, too)"
  fi
done
