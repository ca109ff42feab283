#!/usr/bin/env bash
# g2sd.sh with few steps and labels on the bundled pictures, one seed: shows that every command works, nothing else.
#
#     uv run examples/g2sd_tiny.sh
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export RUNS=${RUNS:-$here/../runs/g2sd-tiny} DATA=${DATA:-$here/data/fashion-mnist} STEPS=${STEPS:-20}
export LABELS=${LABELS:-20} SEEDS=${SEEDS:-0} EPOCHS=${EPOCHS:-1} PRETRAINING=${PRETRAINING:-30}
"$here/g2sd.sh"
