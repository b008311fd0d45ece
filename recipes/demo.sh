#!/usr/bin/env bash
# One run over two backends: half of it in PyTorch, the checkpoint through a Flax .msgpack file, the rest in JAX.
# Usage: recipes/demo.sh [DIRECTORY]   STORIES and STEPS shorten it.
set -euo pipefail

out=${1:-demo}
stories=${STORIES:-20000}
steps=${STEPS:-1600}
half=$((steps / 2))
checkpoint=checkpoints/$(printf 'step_%08d' "$half")

step() {
  local start=$SECONDS
  printf '\n$'
  printf ' %q' "$@"
  printf '\n'
  "$@"
  printf '[%d s]\n' "$((SECONDS - start))"
}

# Only what an earlier demo left may be removed.
if [[ -e $out && ! -e $out/.demo ]]; then
  echo "demo.sh: $out exists and no demo made it; remove it or name another directory" >&2
  exit 2
fi
rm -rf -- "$out"
mkdir -p -- "$out"
touch -- "$out/.demo"

step liquidnet prepare --stories "$stories" --tokenizer byte --out "$out/data"

step liquidnet train torch --preset nano --data "$out/data" --out "$out/run" --steps "$steps" --stop-at "$half"

# JAX starts from what came back from the .msgpack file; PyTorch's own checkpoint steps aside, and must equal it.
step liquidnet convert "$out/run/$checkpoint" "$out/run.msgpack"
step mv "$out/run/$checkpoint" "$out/torch_checkpoint"
step liquidnet convert "$out/run.msgpack" "$out/run/$checkpoint"
step cmp "$out/torch_checkpoint/model.safetensors" "$out/run/$checkpoint/model.safetensors"
step cmp "$out/torch_checkpoint/optimizer.safetensors" "$out/run/$checkpoint/optimizer.safetensors"

step liquidnet train jax --preset nano --data "$out/data" --out "$out/run" --steps "$steps" --resume

step liquidnet generate --checkpoint "$out/run" --backend torch --prompt "Once upon a time" --seed 1
step liquidnet generate --checkpoint "$out/run" --backend jax --prompt "Once upon a time" --seed 1

test -s "$out/run/loss.png"
printf '\nThe loss curve, hand-over marked: %s (%d s in all)\n' "$out/run/loss.png" "$SECONDS"
