#!/usr/bin/env bash
# Train on several machines with torchrun. Give the same command on each of them:
#
#   NODES=2 MASTER=node1 launch/torchrun.sh CONFIG.yaml --run-dir /shared/runs/mine
#
# NODES       number of machines (1)
# MASTER      one of the machines, by its address on a private network: whoever reaches it can join the run
# PORT        a free port on MASTER (29400)
# WORKERS     workers on this machine (one for each GPU; without GPUs, one for each core)
# RESTARTS    how often torchrun starts all workers again after a failure (3)
# GRACE       seconds that the workers get to save after a signal (60)
#
# --run-dir must be the same directory on all machines, on a shared file system.
# Several network interfaces: export GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME with the private one's name.
# To save and stop, send SIGTERM, SIGINT, SIGUSR1 or SIGUSR2 to this script on every machine; the same
# command continues. torchrun then exits with 1: "status" in summary.json tells interrupted from failed.
set -euo pipefail

nodes=${NODES:-1}
# Large pages for malloc, which dist-train run sets for its own workers: fewer page faults on CPUs.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

options=(
    --nnodes "$nodes"
    --nproc-per-node "${WORKERS:-auto}"
    --max-restarts "${RESTARTS:-3}"
    # Without this, torchrun dies of a SIGUSR1 or SIGUSR2 and leaves its workers behind.
    --signals-to-handle SIGTERM,SIGINT,SIGUSR1,SIGUSR2
    --shutdown-timeout "${GRACE:-60}"
)
if ((nodes > 1)); then
    : "${MASTER:?is not set; give the address of one of the machines}"
    options+=(--rdzv-backend c10d --rdzv-endpoint "$MASTER:${PORT:-29400}" --rdzv-id "${RUN_ID:-dist_train}")
else
    options+=(--standalone)
fi

# exec: signals to this script reach torchrun itself.
exec torchrun "${options[@]}" -m dist_train run "$@"
