"""What Ray is told through the environment, which each of its processes reads when it starts."""

from __future__ import annotations

# Ray's own waits, warnings and stand-by processes.
QUICK = {
    # A call that fails says so at once, instead of after a second of waiting for news of the actor.
    "RAY_timeout_ms_task_wait_for_death_info": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
    # Workers are what the machine is for: not below everything else.
    "RAY_worker_niceness": "0",
    # An actor without a GPU leaves CUDA_VISIBLE_DEVICES alone.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# What ended an actor is ours to say: Ray's own paragraphs about it stay out of our output.
QUIET = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".", "RAY_USAGE_STATS_ENABLED": "0"}
# The name notwithstanding: with 0, Ray binds to the loopback address alone, on Linux too.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
