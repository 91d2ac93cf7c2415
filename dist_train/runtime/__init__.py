"""Where workers run: the launcher of local processes, their pulse, and the directory of a run."""
