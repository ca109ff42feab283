#!/usr/bin/env bash
# A small backbone from a large one on pictures without labels, then a few labels: against the same network without.
#
#     uv run examples/backbone.sh > examples/results/backbone.md
#
# DATA names Fashion-MNIST as fashion_mnist.py writes it (--train 2000 a class), RUNS the folder to write into,
# SEEDS the seeds ("0 1 2") of weights, order and views, STEPS the steps of a distillation, LABELS the labels of
# each class that a probe and the network from scratch have. The teacher is an ImageNet network whose weights come
# with a package of the development group (imagenet_teacher.py). Every method has its defaults (but for
# SEED's queue, shorter than the data are, and patches that no CNN can hide from itself) and the same steps; nothing
# was searched. The features of two fixed views of each picture are cached, once for all students.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # equal seeds give equal numbers at an equal number of threads

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${RUNS:-$here/../runs/backbone}
mkdir -p "$runs"
runs=$(cd "$runs" && pwd)
data=${DATA:-$here/../data/fashion-mnist}
labels=${LABELS:-10} steps=${STEPS:-600}
read -ra seeds <<<"${SEEDS:-0 1 2}"
[[ -f $runs/lite2.safetensors ]] || python "$here/imagenet_teacher.py" lite2 "$runs/lite2.safetensors" >&2

cache=(--cache "$runs/cache" --quiet)
few=(--data "$data" --labels-per-class "$labels" "${cache[@]}")
large=$(kdcli probe --head keep --teacher tf_efficientnet_lite2 --weights "$runs/lite2.safetensors" --image-size 64 \
  --quiet --out "$runs/imagenet")
teacher=$(kdcli probe --teacher "$large" --features timm "${few[@]}" --out "$runs/teacher")

reports=()
for seed in "${seeds[@]}"; do
  out=$runs/seed-$seed
  cut=(--set 'views.scale=[0.6,1]' --set evaluate_steps=300 --max-steps "$steps" --lr 2e-3 --seed "$seed")
  new=(--student test_resnet --from-scratch --image-size 32 "${cut[@]}")
  unlabelled=("${new[@]}" --teacher "$large" --data "$data" --views 2 --set views.size=64 "${cache[@]}")
  alone=$(kdcli distill --method supervised "${new[@]}" "${few[@]}" --out "$out/scratch")
  proteus=$(kdcli distill --method proteus --set method.patch=0 "${unlabelled[@]}" --out "$out/proteus")
  queue=$(kdcli distill --method seed --set method.queue=4096 "${unlabelled[@]}" --out "$out/seed")
  backbones=("$proteus" "$queue")
  probes=()
  for method in generic radio; do
    backbone=$(kdcli distill --method "$method" "${unlabelled[@]}" --out "$out/$method")
    backbones+=("$backbone")
  done
  for backbone in "${backbones[@]}"; do
    probe=$(kdcli probe --teacher "$backbone" --features timm --seed "$seed" "${few[@]}" --out "$backbone-probe")
    probes+=("$probe")
  done
  near=$(kdcli eval "${backbones[@]}" "$alone" "$large" --data "$data" --split test --set data.task=representation \
    --no-cost --quiet --out "$out/neighbours")
  report=$(kdcli eval "${probes[@]}" "$alone" "$teacher" --data "$data" --split test --quiet --out "$out/report")
  reports+=("$report" "$near")
  echo "seed $seed: $report" >&2
done
python "$here/summary_generic.py" backbone "${reports[@]}"
