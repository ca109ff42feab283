#!/usr/bin/env bash
# Segmentation: a student by its masks alone, by its teacher's pixels too, or by its teacher's channels (cwd).
#
#     npm pack emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz    # Noto, Apache-2.0
#     uv run examples/masks.sh > examples/results/masks.md
#
# PACKAGE names the unpacked folder (package), RUNS the folder to write into, SEEDS the seeds ("0 1 2") of
# weights, order and views, STEPS the steps of a student. All students have one course, one learning rate and the
# same views, and the methods their default weights: nothing was tuned. Finished stages are not repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # equal seeds give equal numbers at an equal number of threads

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${RUNS:-$here/../runs/masks}
mkdir -p "$runs"
runs=$(cd "$runs" && pwd)
steps=${STEPS:-300}
read -ra seeds <<<"${SEEDS:-0 1 2}"

if [[ ! -d $runs/masks ]]; then
  python "$here/emoji.py" "${PACKAGE:-package}" "$runs/masks" --masks >&2
fi
if [[ ! -f $runs/lite0.safetensors ]]; then
  python "$here/imagenet_teacher.py" lite0 "$runs/lite0.safetensors" >&2
fi
data=(--data "$runs/masks" --cache "$runs/cache" --quiet)
head=(--features grid4 --set 'grid.lr=[3e-3]' --set 'grid.weight_decay=[1e-3]' --set grid.epochs=4)
teacher=$(kdcli probe --teacher tf_efficientnet_lite0 --weights "$runs/lite0.safetensors" --image-size 96 \
  "${head[@]}" --finetune --set optim.max_steps=300 --set optim.batch_size=32 --set optim.lr=1e-3 \
  "${data[@]}" --out "$runs/teacher")

reports=()
for seed in "${seeds[@]}"; do
  out=$runs/seed-$seed
  training=(--student test_resnet --from-scratch --image-size 96 --max-steps "$steps" --batch-size 32 --lr 3e-3
    --views 4 --set evaluate_steps=100 --seed "$seed" "${data[@]}")
  alone=$(kdcli distill --method supervised "${training[@]}" --out "$out/alone")
  pixels=$(kdcli distill --method cwd --set method.weight=0 --set method.kd=1 --teacher "$teacher" \
    "${training[@]}" --out "$out/pixels")
  channels=$(kdcli distill --method cwd --teacher "$teacher" "${training[@]}" --out "$out/channels")
  report=$(kdcli eval "$teacher" "$alone" "$pixels" "$channels" --teacher "$teacher" --no-cost \
    --data "$runs/masks" --split test --quiet --out "$out/report")
  reports+=("$report")
  echo "seed $seed: $report" >&2
done
python "$here/summary.py" masks "${reports[@]}"
