#!/usr/bin/env bash
# From a trained student to a folder that predicts: train, make smaller, compare, export, ask it.
#
#     uv run examples/compress_tiny.sh    # two minutes on two CPU cores, nothing is downloaded
#
# The data are the Fashion-MNIST pictures of this repository. RUNS names the folder to write into. Run it again:
# finished stages are not repeated. Every step is as short as it can be: it shows that all of it works, and
# its figures mean nothing.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${RUNS:-$here/../runs/compress-tiny}
mkdir -p "$runs"
runs=$(cd "$runs" && pwd)

data=(--data example:fashion-mnist --set views.size=32 --batch-size 64)

say() { printf '\n== %s\n' "$1" >&2; }

say "1/4 a student"
student=$(kdcli distill --method supervised --student test_resnet --from-scratch --image-size 32 \
  "${data[@]}" --max-steps 60 --lr 3e-3 --out "$runs/student")

say "2/4 smaller: 70 % of its FLOPs are left, by ResRep and by the norms of its filters"
steps=(--max-steps 60 --set evaluate_steps=10 --lr 0.1 --views live --target flops=0.7)
resrep=$(kdcli compress --student "$student" "${data[@]}" "${steps[@]}" --set method.strength=0.1 \
  --set method.momentum=0.9 --set method.interval=1 --set method.granularity=100 --set method.warmup=0.1 \
  --set threshold=0.05 --export onnx --quantize int8 --out "$runs/resrep")
magnitude=$(kdcli compress --method magnitude --student "$student" --teacher "$student" "${data[@]}" \
  "${steps[@]}" --out "$runs/magnitude")

say "3/4 all three on the test pictures"
report=$(kdcli eval "$student" "$resrep" "$resrep/onnx" "$magnitude" --data example:fashion-mnist --split test \
  --out "$runs/report")

say "4/4 the folder that needs onnxruntime, numpy and pillow alone, asked for a picture"
python - "$runs/picture.png" <<'PY'
import sys

from kdcli.console import Console
from kdcli.sections import DataSection
from kdcli.tasks import open_task_data

test = open_task_data(DataSection(source="example:fashion-mnist"), "test").split("test")
test.picture(0, 10**6).save(sys.argv[1])
Console().note(f"a picture of class {int(test.labels[0])}")
PY
(cd "$resrep/onnx" && python predict.py "$runs/picture.png")
echo "report: $report/report.html"
