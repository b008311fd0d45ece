#!/usr/bin/env bash
# What nano, or another preset, learns with its default flags: validation loss on a text of your own, three seeds in
# each backend.
# Usage: [PRESET=ssm-nano] [LR=3e-3] [OPTIMIZER=muon] recipes/learning.sh TEXT [DIRECTORY]
set -euo pipefail

text=$1
out=${2:-learning}

liquidnet prepare --text "$text" --tokenizer byte --out "$out/data"
for backend in torch jax; do
  for seed in 0 1 2; do
    liquidnet train "$backend" --preset "${PRESET:-nano}" --data "$out/data" --out "$out/$backend-$seed" --seed "$seed" \
      ${LR:+--lr "$LR"} ${OPTIMIZER:+--optimizer "$OPTIMIZER"}
    printf '%s, seed %s: ' "$backend" "$seed"
    liquidnet evaluate --backend "$backend" --checkpoint "$out/$backend-$seed" --data "$out/data"
  done
done
