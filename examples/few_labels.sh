#!/usr/bin/env bash
# Where a teacher helps and where it does not: the quickstart over three choices of the labelled pictures.
#
#     uv run examples/few_labels.sh > examples/results/few_labels.md
#
# Setting 1: 10 labels per class for teacher and student, as in quickstart.sh. Setting 2: the student has all
# 3,600 labels and its teacher is the one of setting 1, which knew 100 of them. --seed (weights, order,
# views) and data.split_seed (which pictures are held out, which keep their label) change together. Every
# student, alone or distilled, has the same search: three learning rates, the best on validation goes on.
#
# RUNS names the folder to write into, SEEDS the seeds ("0 1 2"). Finished stages are not repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # equal seeds give equal numbers at an equal number of threads

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${RUNS:-$here/../runs/few-labels}
mkdir -p "$runs"
runs=$(cd "$runs" && pwd)
read -ra seeds <<<"${SEEDS:-0 1 2}"

data=(--data example:fashion-mnist)
few=(--labels-per-class 10)
student=(--student test_resnet --from-scratch --image-size 32 --set views.size=32)
training=(--max-steps 250 --batch-size 64 --set evaluate_steps=50)

best() { python "$here/summary.py" best "$@"; }

if [[ ! -f $runs/lite0.safetensors ]]; then
  python "$here/imagenet_teacher.py" lite0 "$runs/lite0.safetensors" >&2
fi
reports=()
for seed in "${seeds[@]}"; do
  out=$runs/seed-$seed
  same=("${data[@]}" --seed "$seed" --set "data.split_seed=$seed" --quiet)
  teacher=$(kdcli probe --teacher tf_efficientnet_lite0 --weights "$runs/lite0.safetensors" --image-size 80 \
    "${same[@]}" "${few[@]}" --cache "$runs/cache" --out "$out/teacher")
  alone=() distilled=() all_alone=() all_distilled=()
  for rate in 1e-3 3e-3 1e-2; do
    try=("${same[@]}" "${student[@]}" "${training[@]}" --lr "$rate")
    taught=(--teacher "$teacher" --method task-specific --alpha 0.9 --views 2 --cache "$runs/cache")
    alone+=("$(kdcli distill --method supervised "${try[@]}" "${few[@]}" --out "$out/few-alone-lr-$rate")")
    distilled+=("$(kdcli distill "${taught[@]}" "${try[@]}" "${few[@]}" --set data.labelled_fraction=0.25 \
      --out "$out/few-distilled-lr-$rate")")
    all_alone+=("$(kdcli distill --method supervised "${try[@]}" --out "$out/all-alone-lr-$rate")")
    all_distilled+=("$(kdcli distill "${taught[@]}" "${try[@]}" --out "$out/all-distilled-lr-$rate")")
  done
  chosen=("$(best "${alone[@]}")" "$(best "${distilled[@]}")"
    "$(best "${all_alone[@]}")" "$(best "${all_distilled[@]}")")
  report=$(kdcli eval "$teacher" "${chosen[@]}" --no-cost \
    --teacher "$teacher" "${same[@]}" --split test --out "$out/report")
  reports+=("$report")
  echo "seed $seed: $report" >&2
done
python "$here/summary.py" table "${reports[@]}"
