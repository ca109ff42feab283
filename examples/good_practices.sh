#!/usr/bin/env bash
# The guidelines of Marrie et al. 2024 (arXiv 2402.11305) as commands: a large frozen teacher, a small student.
#
#     DATA=cars/ MIXER=models/image-mixer uv run --with diffusers examples/good_practices.sh
#
# 1. Probe, do not finetune, the teacher: a linear head on the frozen backbone.
# 2. Mix the training pictures with Image Mixer: more pictures, no labels, no prompts.
# 3. Distill the probed teacher straight into the pretrained student (no assistants), which is trained whole:
#    labels on the real pictures, the teacher on real and mixed ones.
# 4. Finetune the same student on the labels alone, with as many steps, to know what the teacher is worth.
#
# MIXER is the diffusers directory that image_mixer_checkpoint.py makes of the published checkpoint. PROCESSES
# is the number of GPUs. Every other variable has its default below; FLAGS are added to each command.
set -euo pipefail

data=${DATA:?name the training pictures: DATA=cars/}
mixer=${MIXER:?name the diffusers directory of Image Mixer: MIXER=models/image-mixer}
teacher=${TEACHER:-dinov2_vitg}
student=${STUDENT:-dinov2_vits}
runs=${RUNS:-runs/good-practices}
read -ra run <<<"-n ${PROCESSES:-1} --precision ${PRECISION:-bf16} ${FLAGS:-}"
read -ra of_teacher <<<"${TEACHER_FLAGS:-}"
read -ra of_student <<<"${STUDENT_FLAGS:-}"
read -ra of_mixer <<<"${MIXER_FLAGS:-}"
read -ra training <<<"${TRAINING_FLAGS:---epochs 30 --batch-size 128 --lr 1e-4}"

probed=$(kdcli probe --teacher "$teacher" --data "$data" "${of_teacher[@]}" "${run[@]}" --out "$runs/teacher")

mixed=$(kdcli synthesize --mixer imagemixer --weights "$mixer" --data "$data" --per-image 1 \
  "${of_mixer[@]}" "${run[@]}" --out "$runs/mixed")

distilled=$(kdcli distill --teacher "$probed" --student "$student" --data "$data" --extra "$mixed" \
  --alpha 0.5 --views live "${of_student[@]}" "${training[@]}" "${run[@]}" --out "$runs/distilled")

steps=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["steps"])' "$distilled/kdcli.json")
finetuned=$(kdcli distill --method supervised --student "$student" --data "$data" \
  "${of_student[@]}" "${training[@]}" --max-steps "$steps" "${run[@]}" --out "$runs/finetuned")

kdcli eval "$probed" "$distilled" "$finetuned" --teacher "$probed" --data "$data" --split test \
  --out "$runs/report"
