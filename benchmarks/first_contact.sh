#!/usr/bin/env bash
# What a user with a fresh card runs to learn whether all is well: about ten minutes, one table. In the repository's root:
#
#   bash benchmarks/first_contact.sh              all stages: card tests torchrun sampler update
#   bash benchmarks/first_contact.sh memory       planned against measured peaks of a run (three minutes more)
#   DEVICE=cpu bash benchmarks/first_contact.sh card torchrun      tiny, to see that the script itself runs
#
# Each stage has a time limit and a log in $OUT (first_contact); one that fails does not keep the next from running. No network, no
# weights and nothing beside torch, transformers, safetensors and pytest are needed. Exit code: 0 if every stage ended well.
set -u
DEVICE=${DEVICE:-cuda} OUT=${OUT:-first_contact} PYTHON=${PYTHON:-python}
export PYTHONPATH="$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo}
mkdir -p "$OUT"
TABLE=$OUT/table.txt FAILED=0
: > "$TABLE"

# An update of 7B takes about 122 GB; on a smaller card the largest shape that fits says as much about the code.
BIG=tiny-1 TRAINED=tiny-1 PLANNED=""
if [ "$DEVICE" = cuda ]; then
  GIB=$("$PYTHON" -c 'import torch; print(int(torch.cuda.get_device_properties(0).total_memory / 2**30))') || exit 1
  BIG=7b-8,7b-32 TRAINED=1.5b-8 PLANNED="--shape 1.5b"
  [ "$GIB" -lt 40 ] && BIG=0.5b-8,0.5b-32 TRAINED=0.5b-4 PLANNED="--shape 0.5b"
  [ "$GIB" -ge 75 ] && TRAINED=3b-8 PLANNED="--shape 3b"
  [ "$GIB" -ge 130 ] && TRAINED=7b-8
fi

check() { # NAME SECONDS COMMAND...: a row of the table, and the end of what the command printed
  local name=$1 limit=$2 begin=$SECONDS code word=ok
  shift 2
  timeout -k 10 "$limit" "$@" > "$OUT/$name.log" 2>&1
  code=$?
  [ $code -ne 0 ] && word="FAILED ($code)" && FAILED=1
  [ $code -eq 124 ] || [ $code -eq 137 ] && word="over $limit s"
  printf '%-10s %-14s %4d s\n' "$name" "$word" $((SECONDS - begin)) >> "$TABLE"
  grep -aE "${SHOWN:-.}" "$OUT/$name.log" | tail -n 16 | cut -c1-160 | sed 's/^/    /' >> "$TABLE"
}

two_steps() { # a process group of one, over the backend of a run: NCCL on a GPU
  "$PYTHON" -c '
import sys
from pathlib import Path
from conftest import write_task_folder
write_task_folder(Path(sys.argv[1]) / "model")
Path(sys.argv[1], "data.jsonl").write_text("{\"question\": \"12/3\", \"answer\": \"four\"}\n")' "$OUT" || return 1
  rm -rf "$OUT/runs"
  "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 1 -- train.py --model "$OUT/model" --data "$OUT/data.jsonl" \
    --judge rules --steps 2 --questions-per-step 1 --group-size 4 --num-plain 2 --max-new-tokens 16 --wandb off \
    --runs-dir "$OUT/runs" --run r --device "$DEVICE"
}
export -f two_steps
export OUT PYTHON DEVICE

for stage in "${@:-card tests torchrun sampler update}"; do
  for stage in $stage; do
    case $stage in
      card) SHOWN='^= ' check card 90 "$PYTHON" benchmarks/card.py --device "$DEVICE" ;;
      tests) SHOWN='^FAILED|^ERROR|Timeout|passed|failed|skipped' check tests 270 "$PYTHON" -m pytest -q tests/test_gpu.py tests/test_cuda_route.py ;;
      torchrun) SHOWN='finished|rror' check torchrun 90 bash -c two_steps ;;
      sampler) check sampler 180 "$PYTHON" benchmarks/rollout.py --device "$DEVICE" --cases "$BIG" --repeats 1 ;;
      update)
        check update 150 "$PYTHON" benchmarks/one_step.py --device "$DEVICE" --case "$TRAINED"
        check recompute 150 "$PYTHON" benchmarks/one_step.py --device "$DEVICE" --case "$TRAINED" --activation-checkpointing
        ;;
      memory) check memory 300 "$PYTHON" benchmarks/memory.py $PLANNED --flags "--max-slots 64" ;;
      *) echo "unknown stage $stage: card, tests, torchrun, sampler, update, memory" && exit 2 ;;
    esac
  done
done
cat "$TABLE"
exit $FAILED
