#!/usr/bin/env bash
# Packs what a bare GPU machine without network lacks (x86-64, Python 3.12, with PyTorch, NumPy, ONNX, OpenCV there):
# TensorRT for RTX, PyAV, pycocotools.
#
#   benchmarks/pack_gpu.sh [FOLDER] [BYTES]        FOLDER: out/gpu_pack; BYTES: 36000000
#
# The library of 234 MB becomes 62 MB in about four minutes and 6 GB of memory. What is sent at once is often limited, so
# the files are dealt into FOLDER/part1, FOLDER/part2, ... of at most BYTES each. Send the parts one after the other and
# run `bash FOLDER/partN/unpack.sh TARGET` in each; the last one finds the others' files in a folder that lives on the
# machine (POSE2SEG_PACK, /tmp/pose2seg_gpu_pack). `benchmarks/gpu_check.sh --carried FOLDER/partN` does it, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:-out/gpu_pack}
part_bytes=${2:-36000000}
rtx=1.7.1.116
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
files=$scratch/files
mkdir -p "$files"

pinned() { grep -i "^$1==" requirements/constraints.txt; }
platforms=()
for version in 2_17 2_24 2_26 2_27 2_28 2_31 2_34; do platforms+=(--platform "manylinux_${version}_x86_64"); done
fetch() { "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux2014_x86_64 "${platforms[@]}" --dest "$files" "$@"; }
fetch "$(pinned av)" "$(pinned pycocotools)"
fetch --abi none "tensorrt-rtx-cu13-bindings==$rtx"
# A few lines of Python that give the parts their names; an sdist, hence a wheel made here.
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$files" "tensorrt-rtx-cu13==$rtx"
"$python" -m pip download --quiet --no-deps --dest "$scratch" "tensorrt-rtx-cu13-libs==$rtx"
"$python" -m zipfile -e "$scratch"/*.whl "$scratch/libs"
for name in libtensorrt_rtx.so.1 libtensorrt_onnxparser_rtx.so.1; do
  # The x86 filter and a dictionary that spans the file save a quarter.
  xz --threads=2 --x86 --lzma2=preset=9e,dict=256MiB --stdout "$scratch/libs/tensorrt_rtx_libs/$name" >"$files/$name.xz"
done

(cd "$files" && for name in *; do
  if [ "$(stat -c %s "$name")" -gt "$part_bytes" ]; then
    split --bytes="$part_bytes" --numeric-suffixes --suffix-length=3 "$name" "$name." && rm "$name"
  fi
done && sha256sum -- * >"$scratch/MANIFEST")

rm -rf "$folder"
part=0 filled=$part_bytes
while read -r size name; do
  if [ $((filled + size)) -gt "$part_bytes" ]; then
    part=$((part + 1)) filled=0
    mkdir -p "$folder/part$part"
    cp benchmarks/unpack_gpu.sh "$folder/part$part/unpack.sh"
    cp "$scratch/MANIFEST" "$folder/part$part/MANIFEST"
  fi
  mv "$files/$name" "$folder/part$part/"
  filled=$((filled + size))
done < <(cd "$files" && stat -c '%s %n' -- * | sort -rn)
du -sh "$folder"/part*
