#!/usr/bin/env bash
# Several machines: the same command on each of them, e.g. HEAD=node0 NODES=2 bash torchrun.sh digits /shared/runs/demo
# HEAD is the name or address of one of the machines. All of them see the folder of the run.
set -euo pipefail
recipe=${1:?usage: HEAD=MACHINE [NODES=2] [PROCESSES=1] bash torchrun.sh RECIPE DIR}
out=${2:?the folder of the run is missing}

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else a machine cannot be replaced
exec torchrun \
    --nnodes "${NODES:-2}" \
    --nproc-per-node "${PROCESSES:-1}" \
    --max-restarts 3 \
    --rdzv-backend c10d \
    --rdzv-endpoint "${HEAD:?HEAD is the machine where the processes meet}:29400" \
    --rdzv-id synthkd \
    -m synthkd distill "$recipe" "out=$out"
