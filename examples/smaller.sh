#!/usr/bin/env bash
# The same cost in three ways: a network made smaller while it learns, pruned before it, or narrow from the start.
#
#     uv run examples/smaller.sh > examples/results/smaller.md
#
# DATA names Fashion-MNIST as fashion_mnist.py writes it (all 70,000), RUNS the folder to write into, SEEDS the
# seeds ("0 1 2") of weights, order and views, STEPS the steps of a training. `dense` is a ResNet-18 of half width;
# what is made of it has seen pictures for 2 × STEPS, and so has all that it is compared with. One learning rate
# for each optimiser, none was searched; λ and the interval follow from what the plan says of the course. Finished
# stages are not repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # equal seeds give equal numbers at an equal number of threads

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${RUNS:-$here/../runs/smaller}
mkdir -p "$runs"/{wide,narrow}
runs=$(cd "$runs" && pwd)
data=${DATA:-$here/../data/fashion-mnist}
steps=${STEPS:-1000} twice=$((2 * ${STEPS:-1000}))
strength=$(python -c "print(8.4 / $steps)") # so that a row that is reset is gone at the end
read -ra seeds <<<"${SEEDS:-0 1 2}"

network() { # name, widths of the stages: a folder that timm builds from
  printf '{"architecture": "resnet18", "num_classes": 10, "model_args": {"channels": [%s], "stem_width": 16}, %s}\n' \
    "$2" '"pretrained_cfg": {"input_size": [3, 32, 32]}' >"$runs/$1/config.json"
}
network wide "32, 64, 128, 256"
network narrow "17, 34, 68, 136" # 45 % of the FLOPs

reports=()
for seed in "${seeds[@]}"; do
  out=$runs/seed-$seed
  common=(--data "$data" --seed "$seed" --batch-size 64 --views live --set 'views.scale=[0.6,1]'
    --set views.size=32 --set evaluate_steps=500 --quiet)
  new=(--from-scratch --image-size 32 --lr 3e-3)
  dense=$(kdcli distill --method supervised --student "local-dir:$runs/wide" "${new[@]}" "${common[@]}" \
    --max-steps "$steps" --out "$out/dense")
  longer=$(kdcli distill --method supervised --student "$dense" --lr 1e-3 "${common[@]}" --max-steps "$steps" \
    --out "$out/dense-longer")
  narrow=(--student "local-dir:$runs/narrow" "${new[@]}" "${common[@]}" --max-steps "$twice")
  alone=$(kdcli distill --method supervised "${narrow[@]}" --out "$out/narrow-alone")
  distilled=$(kdcli distill --method kd --teacher "$dense" "${narrow[@]}" --out "$out/narrow-distilled")
  smaller=(--teacher "$dense" --student same --target flops=0.45 --lr 0.03 "${common[@]}" --max-steps "$steps")
  resrep=$(kdcli compress "${smaller[@]}" --set "method.strength=$strength" \
    --set method.interval=1 --set threshold=0.01 --out "$out/resrep")
  magnitude=$(kdcli compress --method magnitude "${smaller[@]}" --out "$out/magnitude")
  taylor=$(kdcli compress --method taylor "${smaller[@]}" --out "$out/taylor")
  report=$(kdcli eval "$dense" "$longer" "$resrep" "$magnitude" "$taylor" "$alone" "$distilled" --data "$data" --split test \
    --seed "$seed" --quiet --out "$out/report")
  forms=()
  for network in dense magnitude; do # as they are, in ONNX, and there in integers
    made=$(kdcli compress --method none --student "$out/$network" --data "$data" --export onnx --quantize int8 \
      --out "$out/$network-onnx")
    forms+=("$out/$network" "$made/onnx/model.onnx" "$made/onnx")
  done
  kdcli eval "${forms[@]}" --data "$data" --split test --seed "$seed" --quiet --out "$out/forms" >&2
  reports+=("$report")
  echo "seed $seed: $report" >&2
done
python "$here/summary.py" smaller "${reports[@]}"
