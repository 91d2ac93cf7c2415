"""How dist_train compares with other trainers: ``python -m benchmarks.run``."""
