#!/bin/bash
# One run on several nodes under SLURM: one process for each GPU.
#
#   sbatch --nodes 8 experiments/launch/slurm.sh /shared/run \
#       --model nano-12b-v2 --mesh data=8,fsdp=8 --batch 768 --length 8192
#
# First the workdir, on a file system that all nodes share; the rest goes to `nvfp4 train`. The mesh
# has as many devices as the job has GPUs: nodes times gpus-per-node.
#
# SLURM sends SIGTERM ahead of the time limit and of a preemption: the run is saved at one step on
# all nodes. It is queued again then, and continues; so it is after the loss of a node, which the
# other processes notice within a minute, or a disk that failed (status 1), up to 20 times. It is not
# after a mistake in the command (2) or a run that diverged (3): it would come to the same.

#SBATCH --job-name=nvfp4
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8 # not per task: jax gives each task the GPU of its number on the node
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=nvfp4-%j.log

workdir=${1:?the workdir comes first}
shift

# Newer versions of srun do not take the batch script's --cpus-per-task by themselves.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" nvfp4 train --distributed slurm --workdir "$workdir" "$@"
status=$?

whole=$workdir/parameters.safetensors # the last thing that a run writes
if [[ ! -e $whole && $status -ne 2 && $status -ne 3 ]] && ((${SLURM_RESTART_COUNT:-0} < 20)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
