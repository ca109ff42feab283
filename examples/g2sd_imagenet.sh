#!/usr/bin/env bash
# Generic-to-specific distillation as the paper has it (arXiv 2302.14771): ImageNet, MAE's ViT-B, a small ViT.
#
#     DATA=imagenet/ MAE=mae_pretrain_vit_base_full.pth TEACHER=mae_finetuned_vit_base.pth examples/g2sd_imagenet.sh
#     srun -N 4 --ntasks-per-node 8 --gpus-per-node 8 examples/g2sd_imagenet.sh            # on several nodes
#
# MAE is the file with encoder *and* decoder (…_full.pth, trained on normalised pixels): the one of the encoder
# alone is refused. TEACHER is the finetuned network that MAE's authors offer. STUDENT is vit_tiny_patch16_224 or
# vit_small_patch16_224. Batches of 4,096 and 1,024 are those of all processes together; ACCUMULATE splits them
# where memory is short. Under srun every task runs this script, and each command is one job of all tasks.
set -euo pipefail

data=${DATA:?name ImageNet: DATA=imagenet/}
mae=${MAE:?name the file of encoder and decoder: MAE=mae_pretrain_vit_base_full.pth}
finetuned=${TEACHER:?name the finetuned ViT-B: TEACHER=mae_finetuned_vit_base.pth}
student=${STUDENT:-vit_small_patch16_224}
runs=${RUNS:-runs/g2sd-imagenet}
read -ra run <<<"-n ${PROCESSES:-1} --precision ${PRECISION:-bf16} --workers ${WORKERS:-8} ${FLAGS:-}"
read -ra split <<<"--set optim.accumulate=${ACCUMULATE:-1}"

encoder=$(kdcli probe --head decoder --teacher mae_vitb --weights "$mae" --out "$runs/mae")
teacher=$(kdcli probe --head keep --teacher vit_base_patch16_224 --weights "$finetuned" --data "$data" \
  --set data.class_order=same --out "$runs/teacher")

generic=$(kdcli distill --method g2sd-generic --recipe paper --teacher "$encoder" --student "$student" --from-scratch \
  --data "$data" "${split[@]}" "${run[@]}" --out "$runs/generic")
both=$(kdcli distill --method g2sd-specific --recipe paper --teacher "$teacher" --student "$generic" --data "$data" \
  "${split[@]}" "${run[@]}" --out "$runs/student")

kdcli eval "$both" --teacher "$teacher" --data "$data" --split validation --set occlusion=true --set cka=true \
  --out "$runs/report"
