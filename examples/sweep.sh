#!/usr/bin/env bash
# The choices of task-specific distillation, one at a time: alpha, temperature, kind of teacher, extra pictures.
#
#     uv run examples/sweep.sh > examples/results/sweep.md
#
# Every student makes the same number of steps from the same random weights, at one learning rate. 10 pictures
# per class keep their label. The middle of the sweep (probed teacher, alpha 0.5, temperature 1, the pictures
# without label in the teacher term) is changed in one respect at a time. The questions are those of Marrie et
# al. 2024 (arXiv 2402.11305); the networks and the pictures are not theirs.
#
# RUNS names the folder to write into, SEEDS the seeds ("0 1 2"), STEPS the steps. Finished stages are not
# repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # equal seeds give equal numbers at an equal number of threads

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${RUNS:-$here/../runs/sweep}
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
  few=("${data[@]}" --labels-per-class 10 --cache "$runs/cache")
  backbone=(--teacher tf_efficientnet_lite0 --weights "$runs/lite0.safetensors" --image-size 80)
  probed=$(kdcli probe "${backbone[@]}" "${few[@]}" --out "$out/probed-teacher")
  finetuned=$(kdcli probe "${backbone[@]}" "${few[@]}" --finetune --set optim.max_steps=50 \
    --set optim.batch_size=32 --out "$out/finetuned-teacher")
  mixed=$(kdcli synthesize --mixer cutmix --data example:fashion-mnist --seed "$seed" --quiet \
    --per-image 1 --out "$out/cutmix")

  models=("$probed" "$finetuned")
  distill() { # name, teacher, options that differ from the middle
    local name=$1 teacher=$2
    shift 2
    models+=("$(kdcli distill --teacher "$teacher" --method task-specific --views 2 "${student[@]}" \
      "${training[@]}" "${few[@]}" --set data.labelled_fraction=0.25 --alpha 0.5 "$@" --out "$out/$name")")
  }
  models+=("$(kdcli distill --method supervised "${student[@]}" "${training[@]}" "${few[@]}" \
    --out "$out/alone")")
  distill middle "$probed"
  for alpha in 0.25 0.75 0.9 1; do
    distill "alpha-$alpha" "$probed" --alpha "$alpha"
  done
  for temperature in 2 4; do
    distill "temperature-$temperature" "$probed" --temperature "$temperature"
  done
  distill teacher-finetuned "$finetuned"
  distill extra-none "$probed" --set data.labelled_fraction=1
  distill extra-cutmix "$probed" --extra "$mixed"
  reports+=("$(kdcli eval "${models[@]}" --no-cost --teacher "$probed" "${data[@]}" --split test \
    --out "$out/report")")
  echo "seed $seed: ${reports[-1]}" >&2
done
python "$here/summary.py" sweep "${reports[@]}"
