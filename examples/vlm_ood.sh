#!/usr/bin/env bash
# Distilling a vision-language model that generalises to other classes, as the paper has it (arXiv 2307.03135):
# CLIP ViT-L/14 into a ResNet-18 that begins with random weights, on one of its six data sets.
#
#     DATA=flowers/ TEXTS=label2text.txt DESCRIPTIONS=chatgpt.txt examples/vlm_ood.sh
#     SCHEDULE=code DATA=sun397/ TEXTS=label2text.txt DESCRIPTIONS=chatgpt.txt examples/vlm_ood.sh
#
# DATA is a folder of class folders with all pictures: Caltech-UCSD Birds, Stanford Cars, Flower102, Food101, SUN397 or
# tiered-ImageNet. TEXTS and DESCRIPTIONS are the authors' files of that data set, or a JSON of your own (kdcli classes
# prompts prints what to ask a language model for). TEACHER is a folder or hub id of a CLIP in transformers' layout.
# SCHEDULE is paper (450 epochs on the four small sets; large for Food101, SUN397 and tiered-ImageNet: 90) or code (450
# as 90 epochs of five passes each). Classes are divided once, by SEED, and the file is kept: the paper's own lists of
# classes are its authors' and not reproduced here. Few-shot trainings go on with the student of the last epoch.
# Not run here: there was no GPU and no CLIP. The same commands at toy size: vlm_ood_tiny.sh.
set -euo pipefail

data=${DATA:?name a folder of class folders: DATA=flowers/}
texts=${TEXTS:?name what classes are called: TEXTS=label2text.txt, or a JSON file}
runs=${RUNS:-runs/vlm-ood}
teacher=${TEACHER:-hf-hub:openai/clip-vit-large-patch14}
read -ra run <<<"-n ${PROCESSES:-1} --precision ${PRECISION:-bf16} --workers ${WORKERS:-8} ${FLAGS:-}"
case ${SCHEDULE:-paper} in
  paper) recipe=resnet-small ;;
  large) recipe=resnet-large ;;
  code) recipe=resnet-code ;;
  *) echo "SCHEDULE is paper, large or code" >&2 && exit 2 ;;
esac
descriptions=()
[[ -z ${DESCRIPTIONS:-} ]] || descriptions=(--set "texts.descriptions=$DESCRIPTIONS")
mkdir -p "$runs"

split=$(kdcli classes split --data "$data" --seed "${SEED:-0}" --out "$runs/split.json")
bank=$(kdcli probe --task zeroshot --teacher "$teacher" --texts "$texts" "${descriptions[@]}" --out "$runs/teacher")
classes=(--data "$data" --set "data.open_classes=$split")

student=$(kdcli distill --method vlm-ood --recipe "$recipe" --teacher "$bank" --student resnet18 --from-scratch \
  "${classes[@]}" "${run[@]}" --out "$runs/student")
few=$(kdcli distill --method vlm-ood --recipe few-shot --teacher "$bank" --student "$student" --set data.shots=5 \
  "${classes[@]}" "${run[@]}" --out "$runs/few-shot")

for part in id ood; do
  kdcli eval "$student" "$bank" --teacher "$bank" --task zeroshot --split "$part" "${classes[@]}" --out "$runs/$part"
done
kdcli eval "$few" "$bank" --teacher "$bank" --task zeroshot --split ood --set data.shots=5 "${classes[@]}" \
  --out "$runs/ood-5-shot"
