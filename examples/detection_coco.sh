#!/usr/bin/env bash
# Detection at full size: COCO, a finetuned DINOv2 detector, a small student, on several GPUs. Not yet measured.
#
#     DATA=coco-train/ VAL=coco-val/ PROCESSES=8 examples/detection_coco.sh
#     srun -N 2 --ntasks-per-node 8 --gpus-per-node 8 examples/detection_coco.sh     # on several nodes
#
# DATA holds annotations/instances_train2017.json and train2017/, VAL the same of val2017: apart, so that a
# twentieth of train chooses the step and val2017 is measured once, at the end. TEACHER is a backbone (a plain
# ViT sees sizes that twice its patch divides: 14 pixels, 644); with READY=hf-hub:PekingU/rtdetr_r50vd a ready
# detector teaches instead. STUDENT is a timm network with ImageNet weights. 72 epochs and batches of 64 are the settings that
# RT-DETR and G2SD were trained with (arXiv 2304.08069, 2302.14771). Under srun every task runs this script, and
# each command is one job of all tasks.
set -euo pipefail

data=${DATA:?name the training pictures of COCO: DATA=coco-train/}
val=${VAL:?name val2017 in a folder of its own: VAL=coco-val/}
backbone=${TEACHER:-dinov2_vitb}
student=${STUDENT:-resnet18}
runs=${RUNS:-runs/detection-coco}
epochs=${EPOCHS:-72}
read -ra run <<<"-n ${PROCESSES:-1} --precision ${PRECISION:-bf16} --workers ${WORKERS:-8} ${FLAGS:-}"
read -ra split <<<"--set optim.accumulate=${ACCUMULATE:-1}"
train=(--data "$data" --set data.validation_fraction=0.05)
views=(--set views.scale=[1,1] --set views.zoom_out=0.5 --set views.iou_crop=0.8 --set views.color_jitter=0.4)
course=(--batch-size 64 --lr 1e-4 --weight-decay 1e-4 --epochs "$epochs" --set optim.warmup=0.01 --set optim.ema=0.9999)

if [[ -n ${READY:-} ]]; then
  teacher=$(kdcli probe --head keep --teacher "$READY" --out "$runs/teacher")
else
  teacher=$(kdcli probe --teacher "$backbone" --image-size 644 --head rtdetr --finetune "${train[@]}" "${views[@]}" \
    --set optim.batch_size=64 --set optim.lr=1e-4 --set optim.epochs=24 --set optim.layer_decay=0.7 "${run[@]}" \
    --out "$runs/teacher")
fi

alone=$(kdcli distill --method supervised --student "$student" --image-size 640 "${train[@]}" "${views[@]}" \
  "${course[@]}" "${split[@]}" "${run[@]}" --out "$runs/alone")
taught=$(kdcli distill --method g2sd-detection --teacher "$teacher" --student "$student" --image-size 640 \
  "${train[@]}" "${views[@]}" "${course[@]}" "${split[@]}" "${run[@]}" --out "$runs/student")

kdcli eval "$taught" "$alone" --teacher "$teacher" --data "$val" --split validation --out "$runs/report"
