#!/usr/bin/env bash
# Retrieval across drawing styles, and smaller networks for it: frozen backbone, whitened, students, compressed.
#
#     (see emoji_pairs.py for the two npm packages)
#     uv run examples/pairs.sh > examples/results/pairs.md
#
# GOOGLE and TWITTER name the unpacked packages, RUNS the folder to write into, SEEDS the seeds ("0 1 2") of
# weights, order and views. Whole identities of a tenth of train are set apart for selection; test identities are
# in no training picture. One learning rate for all students, and one course for all that is made smaller: none of
# them was tuned. Finished stages are not repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # equal seeds give equal numbers at an equal number of threads

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${RUNS:-$here/../runs/pairs}
mkdir -p "$runs"
runs=$(cd "$runs" && pwd)
read -ra seeds <<<"${SEEDS:-0 1 2}"

if [[ ! -d $runs/emoji ]]; then
  python "$here/emoji_pairs.py" "${GOOGLE:-google/package}" "${TWITTER:-twitter/package}" "$runs/emoji" >&2
fi
if [[ ! -f $runs/lite0.safetensors ]]; then
  python "$here/imagenet_teacher.py" lite0 "$runs/lite0.safetensors" >&2
fi
mkdir -p "$runs/narrow" # 70 % of the FLOPs of test_resnet
printf '{"architecture": "test_resnet", "num_classes": 0, "model_args": {"stem_width": 13, "channels": %s}, %s}\n' \
  "[27, 40, 40, 80]" '"pretrained_cfg": {"input_size": [3, 64, 64]}' >"$runs/narrow/config.json"
data=(--data "$runs/emoji" --set data.duplicates=drop --quiet)
backbone=(--teacher tf_efficientnet_lite0 --weights "$runs/lite0.safetensors" --image-size 64)
frozen=$(kdcli probe --head none "${backbone[@]}" "${data[@]}" --cache "$runs/cache" --out "$runs/frozen")
teacher=$(kdcli probe "${backbone[@]}" "${data[@]}" --cache "$runs/cache" --out "$runs/teacher")

training=(--batch-size 64 --set data.per_identity=2 --views live --set 'views.scale=[0.6,1]' "${data[@]}")
steps=${STEPS:-1500} twice=$((2 * ${STEPS:-1500}))
strength=$(python -c "print(45 / $steps)") # so that a row that is reset is gone at the end
reports=()
for seed in "${seeds[@]}"; do
  out=$runs/seed-$seed
  student=(--student test_resnet --from-scratch --image-size 64 --max-steps "$steps" --lr 3e-3
    --set evaluate_steps=250 --seed "$seed" "${training[@]}")
  alone=$(kdcli distill --method supervised "${student[@]}" --out "$out/alone")
  distilled=$(kdcli distill --method kd --teacher "$teacher" "${student[@]}" --out "$out/distilled")
  narrow=$(kdcli distill --method kd --teacher "$teacher" "${student[@]}" --student "local-dir:$runs/narrow" \
    --max-steps "$twice" --out "$out/narrow")
  smaller=(--teacher "$distilled" --student same --max-steps "$steps" --set evaluate_steps=500
    --seed "$seed" "${training[@]}")
  shrinking=(--lr 0.03 --set threshold=1e-3 --set "method.strength=$strength")
  resrep=$(kdcli compress --target flops=0.7 "${smaller[@]}" "${shrinking[@]}" --set method.momentum=0.9 \
    --set method.interval=10 --set method.granularity=40 --set method.warmup=0.1 --out "$out/resrep")
  cdd=$(kdcli compress --method cdd --target flops=0.7 "${smaller[@]}" "${shrinking[@]}" --out "$out/cdd")
  lasso=$(kdcli compress --method cdd --target flops=0.7 "${smaller[@]}" "${shrinking[@]}" --set method.ratio=0 \
    --out "$out/lasso")
  magnitude=$(kdcli compress --method magnitude --target flops=0.7 "${smaller[@]}" --lr 0.03 \
    --out "$out/magnitude")
  taylor=$(kdcli compress --method taylor --target flops=0.7 "${smaller[@]}" --lr 0.03 --out "$out/taylor")
  report=$(kdcli eval "$frozen" "$teacher" "$alone" "$distilled" "$narrow" "$resrep" "$cdd" "$lasso" "$magnitude" \
    "$taylor" --seed "$seed" "${data[@]}" --out "$out/report")
  reports+=("$report")
  echo "seed $seed: $report" >&2
done
python "$here/summary.py" pairs "${reports[@]}"
