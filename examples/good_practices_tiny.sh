#!/usr/bin/env bash
# good_practices.sh with toy networks on the bundled pictures: shows that every command works, nothing else.
#
#     uv run examples/good_practices_tiny.sh
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${RUNS:-$here/../runs/good-practices-tiny}
mkdir -p "$runs"
cd "$runs"
[[ -d toys ]] || python "$here/toys.py" toys

export RUNS=. DATA=toys/pictures MIXER=toys/image-mixer TEACHER=test_vit STUDENT=test_vit2 PRECISION=no
export TEACHER_FLAGS="--weights toys/teacher.safetensors --image-size 32" MIXER_FLAGS="--steps 2"
export STUDENT_FLAGS="--from-scratch --image-size 32" TRAINING_FLAGS="--max-steps 4 --batch-size 16"
export FLAGS="--cache cache"
"$here/good_practices.sh"
