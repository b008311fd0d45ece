#!/usr/bin/env bash
# The published 30M run: `small` (29.9M parameters) on the first 50M tokens of TinyStories, twice: 4,069 steps of
# 48 x 512 tokens, peak learning rate 1e-4, gradients clipped at 0.5.
# Usage: recipes/tinystories_small.sh [gpu|gpus|tpu] [DIRECTORY [FLAGS]]
#   gpu   one GPU, PyTorch (the default)
#   gpus  GPUS=8 of them, under torchrun
#   tpu   a slice of one host, JAX, MESH=data=8
#   DIRECTORY gets data/ and run/ (default: tinystories_small);   FLAGS go to the training, after the recipe's own
#   DATA=PLACE trains on what `liquidnet prepare` wrote there
# Started again it goes on where it stopped: a download at its last byte, the training at its last checkpoint.
# Slices of several hosts, and sizing a run for one: docs/guide/tpu.md.
set -euo pipefail

machine=${1:-gpu}
out=${2:-tinystories_small}
data=${DATA:-$out/data}
shift $(($# < 2 ? $# : 2))

backend=torch
train=(liquidnet train torch)
case $machine in
  gpu)
    expected="about 90 s of steps on an H100: derived from 1.11M tokens/s, measured there, compiled
  at least 50 s on an H100, 296 s on an A5000: modelled, floors that nothing reaches (liquidnet bench --roofline)
  29.4 min on an A5000, 56,668 tokens/s: reported by the original announcement, not by us"
    ;;
  gpus)
    train=(torchrun --standalone --nproc-per-node "${GPUS:-8}" -m torch_impl.train)
    expected="no figure: neither measured nor modelled
  one H100 takes about 90 s of steps: derived from 1.11M tokens/s, measured there, compiled"
    ;;
  tpu)
    backend=jax
    train=(liquidnet train jax --mesh "${MESH:-data=8}")
    expected="at most 148 s of steps on v5e: modelled, 4,069 of 36.4 ms, all 48 rows on each chip (docs/guide/tpu.md)
  what chips save by sharing the rows is not modelled, and nothing was run on a TPU"
    ;;
  *)
    echo "tinystories_small.sh: choose gpu, gpus or tpu, not $machine" >&2
    exit 2
    ;;
esac

cat <<TEXT
Expected, without evaluations, compiling and preparing:
  $expected
Loss: we have not run this. The original announcement reports a final loss of 2.97 and a perplexity of 35.7, which
  cannot both hold (e^2.97 = 19.5).
TEXT

step() {
  printf '\n$'
  printf ' %q' "$@"
  printf '\n'
  "$@"
}

if [[ ! -e $data/meta.json ]]; then
  step liquidnet prepare --dataset tinystories --tokenizer gpt2 --max-tokens 50e6 --out "$data"
fi
step "${train[@]}" --preset small --data "$data" --out "$out/run" --total-tokens 100e6 --batch-size 48 --seq-len 512 \
  --peak-lr 1e-4 --grad-clip 0.5 --dtype bfloat16 --resume "$@"
step liquidnet evaluate --backend "$backend" --checkpoint "$out/run" --data "$data"
step liquidnet generate --backend "$backend" --checkpoint "$out/run" --prompt "Once upon a time" --max-tokens 100
