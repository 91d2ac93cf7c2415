"""The run of several replicas whose changes of teachers another run follows."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dist_train.config import Config, differences, load_config
from dist_train.errors import ConfigError
from dist_train.layout import CONFIG, EVENTS, replica_folder
from dist_train.rules.teacher_script import Script
from dist_train.watch.records import read

# With other settings the posts that are named would never be made, or nobody would have such a teacher.
_ALIKE = (
    "parallel.mode",
    "parallel.replicas",
    "codistill.burn_in",
    "codistill.interval",
    "codistill.exchange",
    "codistill.topology",
)


def unfollowable(config: Config) -> list[str]:
    """Say what keeps a run from following the one that its ``codistill.schedule`` names."""
    if config.codistill is None or config.codistill.schedule is None:
        return []
    run_dir = Path(config.codistill.schedule)
    where = f"codistill.schedule: {run_dir}"
    if not (run_dir / CONFIG).exists():
        return [f"{where}: no {CONFIG} there; give the directory of a run of several replicas"]
    try:
        earlier = load_config(run_dir / CONFIG)
    except ConfigError as error:
        return [f"{where}: {problem}" for problem in error.problems]
    if earlier.codistill is None:
        return [f"{where}: its replicas taught nobody; give the directory of a run with codistill"]
    found = [
        f"{where}: {key} is {old} there and not {new}; follow a run of the same"
        for key, old, new in differences(earlier, config)
        if key in _ALIKE
    ]
    files = [run_dir / replica_folder(number) / EVENTS for number in range(config.parallel.replicas)]
    missing = [file for file in files if not file.exists()]
    return found or [f"{where}: {file} is not there" for file in missing[:1]]


def script_of(run_dir: Path, replica: int, teachers: Collection[int]) -> Script:
    """Read when a replica changed its ``teachers`` in a run; ConfigError where that cannot be followed."""
    file = run_dir / replica_folder(replica) / EVENTS
    if not file.exists():
        raise ConfigError(f"codistill.schedule: {file} is not there; give the directory of a run of replicas")
    script = Script.of(read(file))
    if strangers := script.teachers - set(teachers):
        names = ", ".join(map(str, sorted(strangers)))
        raise ConfigError(
            f"codistill.schedule: in {file} replica {replica} learns from {names}, and here it does not; "
            "follow a run with the same parallel.replicas and codistill.topology"
        )
    return script
