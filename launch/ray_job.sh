#!/usr/bin/env bash
# Train on a running Ray cluster, as a job. From the folder that holds the configuration and your task, on the
# cluster's head or at the end of an SSH tunnel to it (in another terminal: ssh -N -L 8265:127.0.0.1:8265 head):
#
#   launch/ray_job.sh CONFIG.yaml [KEY.SUB=VALUE]... --run-dir /shared/runs/mine
#
# ADDRESS     Ray's dashboard, which Ray keeps to its own machine (http://127.0.0.1:8265)
# TOKEN_FILE  the file with the cluster's token (~/.ray/auth_token)
#
# The cluster, on each of its machines, dist_train installed and the same token file in place (ray get-auth-token
# --generate makes ~/.ray/auth_token; copy it, readable by its owner alone, before you export where it is):
#
#   export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/etc/ray/token
#   ray start --head --port 6379                                     # on the head
#   ray start --address head:6379                                    # on the others
#
# Where a head shares its machine with another Ray (a server run without --address starts one), give it
# --dashboard-agent-listen-port 0 too: of two Rays that want the usual port, the later one takes no jobs.
#
# Without a token, whoever reaches the head can run programs on all machines: dist_train does not run in a cluster
# that lets such strangers in, unless it is one machine alone. The token does not encrypt: keep the cluster on a
# private network.
#
# This folder is sent along, without .git, .venv, runs/ and what .gitignore names. --run-dir is a path on the
# cluster, on storage that its machines share; the same command continues an interrupted run. Ctrl-C stops the
# job, which gets recovery.grace_s and 10 s more to save (Ray's default of RAY_JOB_STOP_WAIT_TIME_S is 3 s).
# Exit status: that of the run: 0 done, 1 failed, 2 refused, 75 interrupted and saved.
set -euo pipefail

if [[ -n ${TOKEN_FILE:-} ]]; then
    export RAY_AUTH_TOKEN_PATH="$TOKEN_FILE"
fi

# exec: signals to this script reach dist-train itself.
exec dist-train submit --address "${ADDRESS:-http://127.0.0.1:8265}" "$@"
