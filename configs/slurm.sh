#!/bin/bash
# One run over the GPUs of several machines under SLURM: sbatch configs/slurm.sh --flagfile=...
# A process drives one GPU. All of them see all GPUs of their machine (no --gpus-per-task, which
# hides the others from it): JAX takes the one with the process's number. Code, data and
# --output_dir lie where all machines see them. 5 minutes before the time is up, SLURM's SIGTERM
# lets the run save and end. Where a machine fails, the other processes end too and the job starts
# again, from its last checkpoint, also with another number of --nodes; but not where the flags are
# wrong (status 2). Not run on a cluster so far.
#SBATCH --job-name=llmc_jax
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log

srun --kill-on-bad-exit=1 \
    python -m llmc_jax.train --resume --zero_stage=1 --checkpoint_minutes=30 "$@"
status=$?
if [ "$status" -ne 0 ] && [ "$status" -ne 2 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
