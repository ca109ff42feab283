#!/usr/bin/env bash
# Several labels for each picture, from probe to report: emoji of several categories on parts of photographs.
#
#     npm pack emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz    # Noto, Apache-2.0
#     uv run examples/several_labels.sh > examples/results/several_labels.md
#
# PACKAGE names the unpacked folder (package), RUNS the folder to write into, SEEDS the seeds ("0 1 2"): of
# weights, order and views, and of which pictures are held out. Both students have the same search: three
# learning rates, the best on validation goes on. Finished stages are not repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # equal seeds give equal numbers at an equal number of threads

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${RUNS:-$here/../runs/several-labels}
mkdir -p "$runs"
runs=$(cd "$runs" && pwd)
read -ra seeds <<<"${SEEDS:-0 1 2}"

best() { python "$here/summary.py" best "$@"; }

if [[ ! -d $runs/emoji ]]; then
  python "$here/emoji.py" "${PACKAGE:-package}" "$runs/emoji" >&2
fi
if [[ ! -f $runs/lite0.safetensors ]]; then
  python "$here/imagenet_teacher.py" lite0 "$runs/lite0.safetensors" >&2
fi
reports=()
for seed in "${seeds[@]}"; do
  out=$runs/seed-$seed
  same=(--data "$runs/emoji" --seed "$seed" --set "data.split_seed=$seed" --quiet)
  training=(--student test_resnet --from-scratch --image-size 96 --max-steps 600 --batch-size 64
    --set evaluate_steps=100 "${same[@]}")
  teacher=$(kdcli probe --teacher tf_efficientnet_lite0 --weights "$runs/lite0.safetensors" --image-size 160 \
    "${same[@]}" --cache "$runs/cache" --out "$out/teacher")
  alone=() distilled=()
  for rate in 1e-3 3e-3 1e-2; do
    alone+=("$(kdcli distill --method supervised "${training[@]}" --lr "$rate" --out "$out/alone-lr-$rate")")
    distilled+=("$(kdcli distill --method task-specific --teacher "$teacher" --views 4 --cache "$runs/cache" \
      "${training[@]}" --lr "$rate" --out "$out/distilled-lr-$rate")")
  done
  report=$(kdcli eval "$teacher" "$(best "${alone[@]}")" "$(best "${distilled[@]}")" --no-cost \
    --teacher "$teacher" "${same[@]}" --split test --out "$out/report")
  reports+=("$report")
  echo "seed $seed: $report" >&2
done
python "$here/summary.py" labels "${reports[@]}"
