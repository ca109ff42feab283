#!/usr/bin/env bash
# Ten methods side by side: one student, one teacher, the same pictures, steps and learning rate.
#
#     uv run examples/matrix.sh > examples/results/matrix.md
#
# The teacher is probed on all labels, and every student has all labels too: with few labels, the methods that
# learn from pictures without one would see more than the others. All students of a seed start from the same
# random weights and see the same views: kd and dkd read their teacher's outputs from the cache, the methods
# that read features run the teacher in the step. No weight of a method is tuned: they are kdcli's defaults,
# which are those of papers or reference code for other networks and pictures.
#
# RUNS names the folder to write into, SEEDS the seeds ("0 1 2"), STEPS the steps (450 are 8 epochs: up to
# there each epoch has views of its own in the cache too). Finished stages are not repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # equal seeds give equal numbers at an equal number of threads

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${RUNS:-$here/../runs/matrix}
mkdir -p "$runs"
runs=$(cd "$runs" && pwd)
steps=${STEPS:-250}
read -ra seeds <<<"${SEEDS:-0 1 2}"

student=(--student test_resnet --from-scratch --image-size 32 --set views.size=32)
training=(--max-steps "$steps" --batch-size 64 --lr 3e-3 --set evaluate_steps=50)

if [[ ! -f $runs/lite0.safetensors ]]; then
  python "$here/imagenet_teacher.py" lite0 "$runs/lite0.safetensors" >&2
fi
reports=()
for seed in "${seeds[@]}"; do
  out=$runs/seed-$seed
  data=(--data example:fashion-mnist --seed "$seed" --set "data.split_seed=$seed" --quiet)
  teacher=$(kdcli probe --teacher tf_efficientnet_lite0 --weights "$runs/lite0.safetensors" --image-size 80 \
    "${data[@]}" --cache "$runs/cache" --out "$out/teacher")

  models=("$teacher")
  distill() { # method, its options
    local method=$1 path
    shift
    path=$(kdcli distill --method "$method" "${student[@]}" "${training[@]}" "${data[@]}" "$@" \
      --cache "$runs/cache" --out "$out/$method")
    models+=("$path" "$path/last")
  }
  for method in supervised dml byot; do
    distill "$method"
  done
  for method in kd dkd; do
    distill "$method" --teacher "$teacher"
  done
  # Levels that were the defaults when this was measured: at had no stage1, hint was one stage deeper.
  levels=(--set "method.student=[stage2,stage3,stage4]" --set "method.teacher=[stage2,stage3,stage4]")
  distill at --teacher "$teacher" "${levels[@]}"
  for method in sp pkt; do
    distill "$method" --teacher "$teacher"
  done
  level=(--set method.student=stage3 --set method.teacher=stage3)
  distill hint --teacher "$teacher" "${level[@]}" --set method.match=pool # the teacher's grid is the larger
  distill rkd --teacher "$teacher" --set method.kd=0.9 # as the paper found it best
  reports+=("$(kdcli eval "${models[@]}" --no-cost "${data[@]}" --split test --out "$out/report")")
  echo "seed $seed: ${reports[-1]}" >&2
done
python "$here/summary.py" matrix "${reports[@]}"
