"""What a person watches: the display, the records of a run, its scalars, its traces and its logs.

Watching never decides anything and never stops training; a worker that is not rank 0 gets the silent
parts, which have the same verbs.
"""
