#!/bin/bash
# One run on several hosts by Open MPI: one process for each GPU.
#
#   experiments/launch/mpi.sh hosts.txt 8 --model 1b --mesh data=2,fsdp=8 --batch 64 --workdir /shared/run
#
# hosts.txt has a host a line; 8 is the number of GPUs of each. What follows goes to `nvfp4 train`.
# Open MPI 5 needs mpi4py installed beside nvfp4_jax, which asks it for the number of each process.

set -euo pipefail
hosts=$1 each=$2
shift 2
exec mpirun --hostfile "$hosts" --map-by "ppr:$each:node" --bind-to none \
    nvfp4 train --distributed mpi "$@"
