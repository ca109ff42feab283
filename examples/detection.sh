#!/usr/bin/env bash
# Detection: a student by its boxes alone, or by its teacher's queries, features or channels too, at equal steps.
#
#     npm pack emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz    # Noto, Apache-2.0
#     uv run --extra detection examples/detection.sh > examples/results/detection.md
#     pip download --no-deps deepforest==2.1.0
#     DATA=trees SOURCE=deepforest-2.1.0-py3-none-any.whl SIDE=192 HEAD=light,num_queries=120 STEPS=200 EPOCHS=40 \
#       uv run --extra detection examples/detection.sh > examples/results/detection_trees.md
#
# DATA is emoji or trees, SOURCE what boxes.py makes it of, RUNS the folder to write into, SEEDS the seeds
# ("0 1 2") of weights, order and views, STEPS the steps of a student, SIDE its input in pixels, HEAD the
# detector of both. The teacher's is trained on a frozen ImageNet network for EPOCHS epochs. All students have
# one course, one learning rate and the same views, and the methods their default weights. Finished stages are
# not repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # equal seeds give equal numbers at an equal number of threads

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kind=${DATA:-emoji}
runs=${RUNS:-$here/../runs/detection-$kind}
mkdir -p "$runs"
runs=$(cd "$runs" && pwd)
steps=${STEPS:-600} side=${SIDE:-128} epochs=${EPOCHS:-16} head=${HEAD:-light}
read -ra seeds <<<"${SEEDS:-0 1 2}"

if [[ ! -d $runs/$kind ]]; then
  python "$here/boxes.py" "$kind" "${SOURCE:-package}" "$runs/$kind" >&2
fi
if [[ ! -f $runs/lite0.safetensors ]]; then
  python "$here/imagenet_teacher.py" lite0 "$runs/lite0.safetensors" >&2
fi
data=(--data "$runs/$kind" --cache "$runs/cache" --quiet --image-size "$side")
teacher=$(kdcli probe --teacher tf_efficientnet_lite0 --weights "$runs/lite0.safetensors" --head "$head" \
  --epochs "$epochs" --batch-size 32 --set 'grid.lr=[2e-3]' "${data[@]}" --out "$runs/teacher")

reports=()
for seed in "${seeds[@]}"; do
  out=$runs/seed-$seed
  training=(--student test_resnet --from-scratch --set "head=$head" --max-steps "$steps" --batch-size 16 --lr 2e-3
    --views live --set evaluate_steps=100 --seed "$seed" "${data[@]}")
  alone=$(kdcli distill --method supervised "${training[@]}" --out "$out/alone")
  both=$(kdcli distill --teacher "$teacher" "${training[@]}" --out "$out/task-specific")
  queries=$(kdcli distill --method detrdistill-logits --teacher "$teacher" "${training[@]}" --out "$out/queries")
  features=$(kdcli distill --method g2sd-detection --teacher "$teacher" "${training[@]}" --out "$out/features")
  channels=$(kdcli distill --method cwd-features --teacher "$teacher" "${training[@]}" --out "$out/channels")
  report=$(kdcli eval "$teacher" "$alone" "$both" "$queries" "$features" "$channels" --teacher "$teacher" --no-cost \
    --data "$runs/$kind" --split test --quiet --out "$out/report")
  reports+=("$report")
  echo "seed $seed: $report" >&2
done
python "$here/summary.py" boxes "${reports[@]}"
