#!/usr/bin/env bash
# From an ImageNet network to a tiny student that learned from it: teacher, student alone, student distilled.
#
#     uv run examples/quickstart.sh            # a few minutes on two CPU cores, nothing is downloaded
#     uv run examples/quickstart.sh --tiny     # the same commands with a few steps: does everything work?
#
# The data are the 4,000 + 1,500 Fashion-MNIST pictures of this repository. Of the 3,600 training pictures
# only 10 per class keep their label; the teacher's head is fitted on those 100. Both students make the same
# number of steps. A tenth of the training pictures is set apart with its labels and used for selection only
# (of the head, of the step, of the settings below); the test pictures are looked at once, at the end.
#
# RUNS names the folder to write into. Run it again: finished stages are not repeated.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
default=runs/quickstart steps=250
if [[ ${1:-} == --tiny ]]; then
  default=runs/quickstart-tiny steps=4
elif (($#)); then
  echo "usage: quickstart.sh [--tiny]" >&2
  exit 2
fi
runs=${RUNS:-$here/../$default}
mkdir -p "$runs"
runs=$(cd "$runs" && pwd)

data=(--data example:fashion-mnist --labels-per-class 10)
student=(--student test_resnet --from-scratch --image-size 32 --set views.size=32)
training=(--max-steps "$steps" --batch-size 64 --lr 3e-3 --set evaluate_steps=50)

say() { printf '\n== %s\n' "$1" >&2; }

say "1/5 ImageNet weights of the teacher's backbone"
if [[ ! -f $runs/lite0.safetensors ]]; then
  python "$here/imagenet_teacher.py" lite0 "$runs/lite0.safetensors" >&2
fi

say "2/5 teacher: a linear head on the frozen backbone, fitted on 100 labelled pictures"
teacher=$(kdcli probe --teacher tf_efficientnet_lite0 --weights "$runs/lite0.safetensors" --image-size 80 \
  "${data[@]}" --cache "$runs/cache" --out "$runs/teacher")

say "3/5 student alone: the same 100 labelled pictures"
alone=$(kdcli distill --method supervised "${student[@]}" "${training[@]}" \
  "${data[@]}" --out "$runs/student-alone")

say "4/5 student distilled: the teacher on all 3,600 pictures, labels on 100"
distilled=$(kdcli distill --teacher "$teacher" --method task-specific --alpha 0.9 --views 2 \
  "${student[@]}" "${training[@]}" --set data.labelled_fraction=0.25 \
  "${data[@]}" --cache "$runs/cache" --out "$runs/student-distilled")

say "5/5 all three on the test pictures"
report=$(kdcli eval "$teacher" "$alone" "$distilled" --teacher "$teacher" \
  --data example:fashion-mnist --split test --out "$runs/report")

python "$here/summary.py" line "$report"
echo "report: $report/report.html"
