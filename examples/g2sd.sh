#!/usr/bin/env bash
# Generic-to-specific distillation (G2SD) against the same student without each stage.
#
#     uv run examples/g2sd.sh > examples/results/g2sd.md
#
# DATA names Fashion-MNIST as fashion_mnist.py writes it (--train 2000 a class), RUNS the folder to write into,
# SEEDS the seeds ("0 1 2") of weights, order and views, STEPS the steps of the generic stage; the specific one has
# half as many, and what has one stage only gets the steps of both. The teacher is made here, once: pretrained without
# labels for PRETRAINING steps, then finetuned for EPOCHS. LABELS, where given, is how many labels of each class
# anyone has. Nothing was searched, and every student is that of its last stage's best step on validation. Finished
# stages are not repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # equal seeds give equal numbers at an equal number of threads

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${RUNS:-$here/../runs/g2sd}
mkdir -p "$runs"
runs=$(cd "$runs" && pwd)
data=${DATA:-$here/../data/fashion-mnist}
epochs=${EPOCHS:-4} pretraining=${PRETRAINING:-1500}
steps=${STEPS:-400} half=$((${STEPS:-400} / 2)) twice=$((${STEPS:-400} * 3 / 2))
read -ra labelled <<<"${LABELS:+--labels-per-class $LABELS}"
read -ra seeds <<<"${SEEDS:-0 1 2}"

small=(--student vit_tiny_patch16_224,patch_size=7,embed_dim=64,depth=4,num_heads=2 --image-size 28 --from-scratch)
large=(--student vit_tiny_patch16_224,patch_size=7,embed_dim=128,depth=6,num_heads=4 --image-size 28 --from-scratch)
views=(--views live --set 'views.scale=[0.6,1]' --set views.interpolation=bilinear --quiet)
slow=(--lr 1e-3 --set evaluate_steps=500 "${views[@]}")
whole=(--views live --set 'views.scale=[0.7,0.9]' --set 'views.ratio=[1,1]' --set optim.clip_grad=null --quiet) # about what is evaluated

mae=$(kdcli distill --method mae "${large[@]}" --data "$data" --max-steps "$pretraining" --set method.decoder=64 \
  --set method.decoder_depth=8 "${slow[@]}" --out "$runs/mae")
teacher=$(kdcli probe --teacher "$mae" --data "$data" "${labelled[@]}" --features pooled --finetune --set optim.lr=5e-4 \
  --set "optim.epochs=$epochs" --set 'views.scale=[0.7,0.9]' --set 'views.ratio=[1,1]' --set optim.clip_grad=null --quiet --out "$runs/teacher")

reports=()
for seed in "${seeds[@]}"; do
  out=$runs/seed-$seed
  common=(--data "$data" --seed "$seed" "${slow[@]}")
  few=(--data "$data" --seed "$seed" --lr 1e-3 --set evaluate_steps=200 "${whole[@]}" "${labelled[@]}")
  scratch=$(kdcli distill --method supervised "${small[@]}" "${few[@]}" --max-steps "$twice" --out "$out/scratch")
  only=$(kdcli distill --method g2sd-specific --teacher "$teacher" "${small[@]}" "${few[@]}" \
    --max-steps "$twice" --out "$out/specific-only")
  generic=$(kdcli distill --method g2sd-generic --teacher "$mae" "${small[@]}" "${common[@]}" \
    --set method.decoder=32 --set method.decoder_depth=2 --max-steps "$steps" --out "$out/generic")
  tuned=$(kdcli distill --method supervised --student "$generic" "${few[@]}" --max-steps "$half" \
    --out "$out/generic-only")
  both=$(kdcli distill --method g2sd-specific --teacher "$teacher" --student "$generic" "${few[@]}" \
    --max-steps "$half" --out "$out/both")
  report=$(kdcli eval "$scratch" "$only" "$tuned" "$both" --teacher "$teacher" --data "$data" --split test \
    --set occlusion=true --set occlusion_grid=4 --set cka=true --no-cost --seed "$seed" --quiet --out "$out/report")
  reports+=("$report")
  echo "seed $seed: $report" >&2
done
python "$here/summary_generic.py" g2sd "${reports[@]}"
