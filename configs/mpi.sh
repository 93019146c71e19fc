#!/bin/bash
# One run over the GPUs of several machines under Open MPI, which only starts the processes:
#   HOSTS=gpu1:8,gpu2:8 configs/mpi.sh --flagfile=configs/gpt2_1558M.flags
# A process drives one GPU. COORDINATOR is where the first process listens, an address that the
# others reach and a free port; Open MPI 4 would say it by itself, Open MPI 5 does not.
set -e
: "${HOSTS:?HOSTS=name:processes,name:processes,... of the machines}"
COORDINATOR=${COORDINATOR:-${HOSTS%%:*}:29400}
mpirun --host "$HOSTS" --bind-to none -x PATH -x LD_LIBRARY_PATH \
    bash -c 'JAX_LOCAL_DEVICE_IDS=$OMPI_COMM_WORLD_LOCAL_RANK exec "$@"' run \
    python -m llmc_jax.train --coordinator_address="$COORDINATOR" --resume --zero_stage=1 "$@"
