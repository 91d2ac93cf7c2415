"""Every wrong configuration gets one line for each problem: where, which key, what, and what to write."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dist_train.config import Config
from dist_train.errors import ConfigError

Read = Callable[..., Config]
GOOD = """\
name: x
task: digits
train: {epochs: 1, batch_size: 2}
optimizer: {name: sgd, lr: 0.1}
"""
OPTIMIZERS = "sgd, adagrad, rmsprop, adam, adamw, lars"
DECAYS = "constant, step, cosine, cosine_restarts, one_cycle"
SGD_KEYS = "lr, weight_decay, decay_norm_and_bias, name, momentum, nesterov"
WARMUPS = "none, gradual, constant"


def lines_of(read: Read, text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return list(caught.value.problems)


# What is added to GOOD, as its line 5, and the lines that follow from it.
BAD_ADDITIONS: list[tuple[str, list[str]]] = [
    # Keys that do not exist.
    ("sede: 1", ["5:1: sede: unknown key; did you mean seed?"]),
    ("SEED: 1", ["5:1: SEED: unknown key; did you mean seed?"]),
    (
        "steps: 1",
        [
            "5:1: steps: unknown key;"
            " did you mean schedule.rewarm.steps or schedule.warmup.steps or train.steps?"
        ],
    ),
    ("optimiser: sgd", ["5:1: optimiser: unknown key; did you mean optimizer?"]),
    ("lr: 1", ["5:1: lr: unknown key; did you mean optimizer.lr or parallel.outer.lr?"]),
    (
        "batch_size: 1",
        ["5:1: batch_size: unknown key; did you mean train.batch_size or validation.batch_size?"],
    ),
    (
        "data: {zzz: 1}",
        ["5:8: data.zzz: unknown key; the keys here are loaders, prefetch, bad_samples, bootstrap"],
    ),
    (
        "data: {3: 1}",
        ["5:8: data[3]: unknown key; the keys here are loaders, prefetch, bad_samples, bootstrap"],
    ),
    (
        "data:\n  loaders: 1\n  prefetsh: 2\n  bad-samples: 3",
        [
            "7:3: data.prefetsh: unknown key; did you mean prefetch?",
            "8:3: data.bad-samples: unknown key; did you mean bad_samples?",
        ],
    ),
    (
        "schedule: {warmup: {kind: none, epochs: 5}}",
        ["5:33: schedule.warmup.epochs: unknown key for none; its keys are kind"],
    ),
    ("model: {name: m, 3: 4}", ["5:18: model[3]: a key must be text; put it in quotes"]),
    ("task_options: {3: 4}", ["5:16: task_options[3]: a key must be text; put it in quotes"]),
    # What stands under a misspelt key is read as what was meant: it hides no problem and causes none.
    (
        "dta: {loaders: abc}",
        [
            "5:1: dta: unknown key; did you mean data?",
            "5:16: data.loaders: expected a whole number of at least 0, found 'abc'",
        ],
    ),
    ("data: {prefetsh: abc}", ["5:8: data.prefetsh: unknown key; did you mean prefetch?"]),
    ("shedule: {decay: cosine}", ["5:1: shedule: unknown key; did you mean schedule?"]),
    # Keys given twice.
    ("seed: 1\nseed: 2", ["6:1: seed: given twice (first in line 5); keep one of them"]),
    ("task: text", ["5:1: task: given twice (first in line 2); keep one of them"]),
    (
        "data: {loaders: 1, loaders: 1}",
        ["5:20: data.loaders: given twice (first in line 5); keep one of them"],
    ),
    (
        "task_options: {a: {b: 1, b: 2}}",
        ["5:26: task_options.a.b: given twice (first in line 5); keep one of them"],
    ),
    # Values of the wrong kind.
    ("seed: abc", ["5:7: seed: expected a whole number of at least 0, found 'abc'"]),
    ("seed: '3'", ["5:7: seed: expected a whole number of at least 0, found '3'; remove the quotes"]),
    ("seed: true", ["5:7: seed: expected a whole number of at least 0, found true"]),
    ("seed: 1.5", ["5:7: seed: expected a whole number of at least 0, found 1.5"]),
    ("seed: 1e3", ["5:7: seed: expected a whole number of at least 0, found 1000.0; write 1000"]),
    ("seed: .nan", ["5:7: seed: expected a whole number of at least 0, found nan; it must be finite"]),
    ("seed:", ["5:6: seed: expected a whole number of at least 0, found null"]),
    ("seed: 2026-01-01", ["5:7: seed: expected a whole number of at least 0, found '2026-01-01'"]),
    ("seed: [1, a]", ["5:7: seed: expected a whole number of at least 0, found [1, 'a']"]),
    ("logging: {tensorboard: yes}", ["5:24: logging.tensorboard: expected true or false, found 'yes'"]),
    ("logging: {tensorboard: 1}", ["5:24: logging.tensorboard: expected true or false, found 1"]),
    ("logging: 3", ["5:10: logging: expected a section (every_steps, tensorboard, profile, ...), found 3"]),
    ("data:", ["5:6: data: expected a section (loaders, prefetch, bad_samples, ...), found null"]),
    (
        "schedule: {rewarm: 5}",
        ["5:20: schedule.rewarm: expected a section (epochs, steps, samples) or null, found 5"],
    ),
    ("model: [a]", ["5:8: model: expected a section (name) or null, found ['a']"]),
    ("task_options: [1]", ["5:15: task_options: expected a section of options, found [1]"]),
    (
        "recovery: {grace_s: '3'}",
        ["5:21: recovery.grace_s: expected a number above 0, found '3'; remove the quotes"],
    ),
    ("recovery: {grace_s: true}", ["5:21: recovery.grace_s: expected a number above 0, found true"]),
    # Values out of bounds.
    ("seed: -1", ["5:7: seed: expected a whole number of at least 0, found -1"]),
    (
        "checkpoint: {keep_last: 1}",
        ["5:25: checkpoint.keep_last: expected a whole number of at least 2, found 1"],
    ),
    (
        "recovery: {grace_s: .inf}",
        ["5:21: recovery.grace_s: expected a number above 0, found inf; it must be finite"],
    ),
    (
        "recovery: {grace_s: .nan}",
        ["5:21: recovery.grace_s: expected a number above 0, found nan; it must be finite"],
    ),
    ("recovery: {grace_s: 0}", ["5:21: recovery.grace_s: expected a number above 0, found 0"]),
    (
        "schedule: {decay: {kind: one_cycle, triangle: 1.5}}",
        ["5:47: schedule.decay.triangle: expected a number above 0 and at most 1, found 1.5"],
    ),
    (
        "schedule: {decay: {kind: one_cycle, momentum: [0.9, 1]}}",
        ["5:53: schedule.decay.momentum[1]: expected a number of at least 0 and below 1, found 1"],
    ),
    (
        "schedule: {decay: {kind: one_cycle, momentum: [0.9]}}",
        [
            "5:47: schedule.decay.momentum: expected a list of 2 (each a number of at least 0 and below 1)"
            " or null, found [0.9]"
        ],
    ),
    (
        "schedule: {decay: {kind: step, milestones: 3}}",
        ["5:44: schedule.decay.milestones: expected a list (each item a number above 0), found 3"],
    ),
    (
        "schedule: {decay: {kind: step, milestones: [1, a]}}",
        ["5:48: schedule.decay.milestones[1]: expected a number above 0, found 'a'"],
    ),
    # Words that are not among those allowed.
    (
        "parallel: {device: gpu}",
        ["5:20: parallel.device: 'gpu' is not one of auto, cpu, cuda; did you mean cpu?"],
    ),
    ("parallel: {device: 3}", ["5:20: parallel.device: expected one of auto, cpu, cuda, found 3"]),
    (
        "parallel: {mode: asynk}",
        ["5:18: parallel.mode: 'asynk' is not one of sync, backup, async, bounded; did you mean async?"],
    ),
    (
        "parallel: {backups: few}",
        ["5:21: parallel.backups: expected a whole number of at least 0 or auto, found 'few'"],
    ),
    (
        "parallel: {mode: async, outer: nestrov}",
        [
            "5:32: parallel.outer.kind: 'nestrov' is not one of average, nesterov, elastic;"
            " did you mean nesterov?"
        ],
    ),
    (
        "parallel: {outer: 3}",
        [
            "5:19: parallel.outer: expected a section with kind: average | nesterov | elastic, or null,"
            " found 3"
        ],
    ),
    (
        "parallel: {mode: async, damping: {kind: inverse, strength: 1}}",
        ["5:50: parallel.damping.strength: unknown key for inverse; its keys are kind"],
    ),
    (
        "parallel: {server: {copies: 3}}",
        ["5:29: parallel.server.copies: expected a whole number of at least 1 and at most 2, found 3"],
    ),
    # Sections whose keys are numbers.
    (
        "faults: {slow: {a: 2}}",
        ["5:17: faults.slow.a: a key here must be a whole number of at least 0"],
    ),
    (
        "faults: {slow: {-1: 2}}",
        ["5:17: faults.slow[-1]: a key here must be a whole number of at least 0"],
    ),
    ("faults: {slow: {0: 2, '0': 3}}", ["5:23: faults.slow.0: given twice; keep one of them"]),
    ("faults: {slow: {0: 0.5}}", ["5:20: faults.slow[0]: expected a number of at least 1, found 0.5"]),
    ("faults: {slow: {'0': x}}", ["5:22: faults.slow[0]: expected a number of at least 1, found 'x'"]),
    ("faults: {slow: 3}", ["5:16: faults.slow: expected a section of worker: factor, found 3"]),
    (
        "codistill: {weight: 1}",
        ["5:1: codistill: one replica has nobody to learn from; set parallel.replicas to 2 or more"],
    ),
    (
        "codistill: {topology: pairs}\nparallel: {replicas: 3}",
        [
            "5:13: codistill.topology: pairs need an even number of replicas, and there are 3; "
            "set it to all or ring"
        ],
    ),
    (
        "codistill: {exchange: logits}\nparallel: {replicas: 2}",
        ["5:23: codistill.exchange: 'logits' is not one of checkpoint, prediction"],
    ),
    (
        "codistill: {exchange: prediction, data: same}\nparallel: {replicas: 2, mode: async}",
        [
            "5:13: codistill.exchange: in mode async no two replicas are at the same batch; "
            "set it to checkpoint, or parallel.mode to sync"
        ],
    ),
    (
        "codistill: {exchange: prediction}\nparallel: {replicas: 2}",
        [
            "5:1: codistill.data: predictions are exchanged of the same batches; set it to same, "
            "or codistill.exchange to checkpoint"
        ],
    ),
    (
        "codistill: {schedule: runs/a}\nparallel: {replicas: 2}",
        ["5:1: codistill.keep_posts: a replica may need a post long after it was made; set it to all"],
    ),
    (
        "codistill: {schedule: runs/a}\nparallel: {replicas: 2, mode: backup}",
        ["5:13: codistill.schedule: mode backup is repeated by dist-train replay; set it to null"],
    ),
    (
        "codistill: {schedule: runs/a, exchange: prediction, data: same}\nparallel: {replicas: 2}",
        ["5:13: codistill.schedule: exchange prediction has no teachers to change; set it to null"],
    ),
    (
        "data: {bootstrap: true}",
        [
            "5:8: data.bootstrap: one replica makes no ensemble; set it to false, or parallel.replicas to 2 "
            "or more"
        ],
    ),
    (
        "data: {bootstrap: true}\nparallel: {replicas: 2}\ncodistill: {}",
        [
            "5:8: data.bootstrap: codistill.data says what replicas that teach one another train on; set it "
            "to false, or codistill to null"
        ],
    ),
    (
        "distill: {temperature: 2}",
        ["5:1: distill.teachers: missing; give a list of at least one run directory"],
    ),
    (
        "distill: {teachers: []}",
        ["5:21: distill.teachers: expected a list of at least one run directory, found []"],
    ),
    (
        "distill: {teachers: [a], soft_weight: 1.5}",
        ["5:39: distill.soft_weight: expected a number of at least 0 and at most 1, found 1.5"],
    ),
    (
        "parallel: {mode: async}\ndistill: {teachers: [a]}",
        ["6:1: distill: mode async has no teachers; set it to null, or parallel.mode to sync"],
    ),
    (
        "parallel: {workers: aut}",
        ["5:21: parallel.workers: expected a whole number above 0 or auto, found 'aut'; did you mean auto?"],
    ),
    (
        "schedule: {decay: Cosine}",
        [f"5:19: schedule.decay.kind: 'Cosine' is not one of {DECAYS}; did you mean cosine?"],
    ),
    ("schedule: {decay: {kind: 3}}", [f"5:26: schedule.decay.kind: expected one of {DECAYS}, found 3"]),
    ("schedule: {decay: zzz}", [f"5:19: schedule.decay.kind: 'zzz' is not one of {DECAYS}"]),
    # What is missing.
    ("model: {width: 3}", ["5:1: model.name: missing; give text"]),
    (
        "schedule: {warmup: {epochs: 5}}",
        ["5:12: schedule.warmup.kind: missing; give one of none, gradual, constant"],
    ),
    (
        "schedule: {decay: step}",
        ["5:12: schedule.decay.milestones: missing; give a list (each item a number above 0)"],
    ),
    # Keys that do not go together.
    (
        "schedule: {warmup: gradual}",
        ["5:12: schedule.warmup: give exactly one of epochs, steps, samples (found none)"],
    ),
    (
        "schedule: {decay: {kind: step, milestones: [3, 2]}}",
        ["5:12: schedule.decay: milestones must rise, found [3.0, 2.0]"],
    ),
    (
        "parallel: {global_batch: 8}",
        ["1:1: give exactly one of train.batch_size (per worker) and parallel.global_batch (all workers)"],
    ),
    # YAML that means more than plain values.
    (
        "model: !!python/object:os.system x",
        ["5:8: model: the tag !!python/object:os.system is not allowed here; write a plain value without it"],
    ),
    (
        "model: !mine {name: a}",
        ["5:8: model: the tag !mine is not allowed here; write a plain value without it"],
    ),
    ("seed: !!int abc", ["5:7: seed: 'abc' is not a whole number"]),
    ("<<: 3", ["5:5: <<: must be followed by the alias of a section, as in '<<: *name'"]),
    ("? [a]\n: 3", ["5:3: a key must be a word, found a list or a section; check the brackets"]),
    ("seed: " + "9" * 1001, ["5:7: seed: a whole number of more than 1000 digits; write a smaller one"]),
]


@pytest.mark.parametrize(("addition", "expected"), BAD_ADDITIONS)
def test_a_bad_addition_is_named(read: Read, addition: str, expected: list[str]) -> None:
    assert lines_of(read, GOOD + addition + "\n") == [f"x.yaml:{line}" for line in expected]


# Whole texts, and their lines.
BAD_TEXTS: list[tuple[str | bytes, list[str]]] = [
    ("", ["1:1: the file is empty; it needs at least name, task, train, optimizer"]),
    ("# only a comment\n", ["1:1: the file is empty; it needs at least name, task, train, optimizer"]),
    ("- a\n- b\n", ["1:1: expected 'key: value' lines with name, task, train, optimizer, found a list"]),
    (
        "\njust words\n",
        ["1:1: expected 'key: value' lines with name, task, train, optimizer, found 'just words'"],
    ),
    ("!!set {a}", ["1:1: the tag !!set is not allowed here; write a plain value without it"]),
    (
        "a: b: c",
        [
            "1:5: not valid YAML: mapping values are not allowed here;"
            " put text that holds ': ' in quotes, or check the indentation"
        ],
    ),
    (
        "train:\n\tsteps: 3",
        [
            "2:1: not valid YAML: while scanning for the next token found character '\\t'"
            " that cannot start any token; indent with spaces, not tabs"
        ],
    ),
    (
        "name: 'x",
        [
            "1:9: not valid YAML: while scanning a quoted scalar found unexpected end of stream;"
            " close the quotes"
        ],
    ),
    (
        "name: *x",
        [
            "1:7: not valid YAML: found undefined alias 'x';"
            " define it above with &name, or put text that starts with * in quotes"
        ],
    ),
    (
        "--- a\n--- b\n",
        [
            "2:1: not valid YAML: expected a single document in the stream but found another document;"
            " keep one document: remove the '---'"
        ],
    ),
    (b"name: x\n# caf\xe9\n", ["2:6: byte 0xe9 is not UTF-8 text; save the file as UTF-8"]),
    (b"name: x\n\x00", ["2:1: the character 0x0 is not allowed; remove it"]),
    (
        "name: x",
        [
            "1:1: task: missing; give text",
            "1:1: train: missing; give a section (epochs, steps, samples, ...)",
            f"1:1: optimizer: missing; give a section with name: {OPTIMIZERS.replace(', ', ' | ')}",
        ],
    ),
    (
        # One word misspelt in each way: every line is named, and none hides or causes another.
        "name: x\n"
        "task: 3\n"
        "train:\n"
        "  epoks: 20\n"
        "  batch_sise: 32\n"
        "  precision: fp16\n"
        "optimizer: {name: sdg, lr: -1e-3, momentum: 1, betas: [0, 0]}\n"
        "schedule:\n"
        "  warmup: {kind: gradul, epochs: 0}\n",
        [
            "2:7: task: expected text, found 3",
            "4:3: train.epoks: unknown key; did you mean epochs?",
            "5:3: train.batch_sise: unknown key; did you mean batch_size?",
            "6:14: train.precision: 'fp16' is not one of fp32, bf16; did you mean bf16?",
            f"7:19: optimizer.name: 'sdg' is not one of {OPTIMIZERS}; did you mean sgd?",
            "7:28: optimizer.lr: expected a number above 0, found -0.001",
            "7:45: optimizer.momentum: expected a number of at least 0 and below 1, found 1",
            f"7:48: optimizer.betas: unknown key for sgd; its keys are {SGD_KEYS}",
            f"9:18: schedule.warmup.kind: 'gradul' is not one of {WARMUPS}; did you mean gradual?",
            "9:34: schedule.warmup.epochs: expected a number above 0 or null, found 0",
        ],
    ),
    (
        "name: x\ntask: t\ntrain: {}\noptimizer: {}\n",
        [
            "3:1: train: give exactly one of epochs, steps, samples (found none)",
            f"4:1: optimizer.name: missing; give one of {OPTIMIZERS}",
        ],
    ),
    (
        "name: x\ntask: t\ntrain: {steps: 1, epochs: 2, batch_size: 3}\noptimizer: sgd\n",
        [
            "3:1: train: give exactly one of epochs, steps, samples (found epochs and steps)",
            "4:1: optimizer.lr: missing; give a number above 0",
        ],
    ),
]


@pytest.mark.parametrize(("text", "expected"), BAD_TEXTS)
def test_a_bad_text_is_named(read: Read, text: str | bytes, expected: list[str]) -> None:
    assert lines_of(read, text) == [f"x.yaml:{line}" for line in expected]


def test_the_run_name_says_what_a_name_is(read: Read) -> None:
    (line,) = lines_of(read, GOOD.replace("name: x", "name: ../x"))
    assert line.startswith("x.yaml:1:7: name: expected ")
    assert line.endswith(", found '../x'")


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("a: " + "[" * 5000, "nested deeper than 50 levels"),
        ("a: " + "[" * 60 + "]" * 60, "nested deeper than 50 levels"),
        ("a: &a [*a]", "an alias that contains itself"),
        ("a: &a {<<: *a}", "an alias that contains itself"),
        ('a: "\\U99999999"', "check the \\ escapes in double quotes"),
    ],
)
def test_a_malicious_text_is_refused_in_one_line(read: Read, text: str, sign: str) -> None:
    (line,) = lines_of(read, text)
    assert line.startswith("x.yaml:1:")
    assert sign in line


@pytest.mark.parametrize(
    "use", ["[{}, {}, {}, {}, {}, {}, {}, {}, {}, {}]", "{{<<: [{}, {}, {}, {}, {}, {}, {}, {}, {}, {}]}}"]
)
def test_aliases_that_multiply_are_refused(read: Read, use: str) -> None:
    bomb = ["a0: &a0 {x: 1}"]
    bomb += [f"a{level}: &a{level} " + use.format(*[f"*a{level - 1}"] * 10) for level in range(1, 12)]
    (line,) = lines_of(read, "\n".join(bomb))
    assert "more than 100000 values" in line
