"""The run's configuration: read from YAML or a mapping, checked in full before anything heavy is imported."""

from __future__ import annotations

from dist_train.config.reading import load_config
from dist_train.config.schema import Config
from dist_train.config.writing import differences, dump_config, flatten

__all__ = ["Config", "differences", "dump_config", "flatten", "load_config"]
