#!/usr/bin/env bash
# Everything that only a GPU can prove, in one command and under eight minutes, without network:
#
#   benchmarks/gpu_check.sh [--carried DIR] [--limit SECONDS]
#
# DIR is a folder filled by benchmarks/pack_gpu.sh with what the machine lacks (TensorRT for RTX, a few wheels). Results
# go to benchmarks/results/<device>/gpu_check.{json,md}. On a machine without a GPU the same steps run as far as they
# can, and those that cannot say so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu_check "$@"
