#!/usr/bin/env bash
# One run that never has the same machine twice: four processes, one, JAX, two; beside it the same run in one process.
# Usage: recipes/elastic.sh DATA [DIRECTORY]   STEPS shortens it; a multiple of 4.
set -euo pipefail

data=${1:?which prepared data?}
out=${2:-elastic}
steps=${STEPS:-800}
quarter=$((steps / 4))

if [[ -e $out ]]; then
  echo "elastic.sh: $out exists; remove it or name another directory" >&2
  exit 2
fi
# Processes that share the cores of one machine are faster with one thread each.
export OMP_NUM_THREADS=1

leg() {
  local processes=$1 until=$2
  shift 2
  printf '\n==> %s process(es) to step %s: %s\n' "$processes" "$until" "$*"
  python -m torch.distributed.run --standalone --nproc-per-node "$processes" -m torch_impl.train \
    --data "$data" --out "$out/run" --steps "$steps" --eval-every "$quarter" --stop-at "$until" "$@"
}

leg 4 "$quarter" --preset nano --parallel fsdp --checkpoint-format dcp
leg 1 $((2 * quarter)) --resume --micro-batch-size 4
liquidnet train jax --data "$data" --out "$out/run" --steps "$steps" --stop-at $((3 * quarter)) --resume
leg 2 "$steps" --resume --context-parallel 2

printf '\n==> the same run in one process\n'
liquidnet train torch --data "$data" --out "$out/alone" --preset nano --steps "$steps" --eval-every "$quarter"

liquidnet plot "$out/run" --reference "$out/alone"
