#!/usr/bin/env bash
# detection.sh with a few steps on a few made-up pictures, one seed: shows that every command works, nothing else.
#
#     uv run examples/detection_tiny.sh
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export RUNS=${RUNS:-$here/../runs/detection-tiny} DATA=squares STEPS=${STEPS:-12} SEEDS=${SEEDS:-0}
export EPOCHS=${EPOCHS:-1} SIDE=${SIDE:-64}
"$here/detection.sh"
