"""The settings of a parameter server, spelt out for a person: who computes what, and what counts when."""

from __future__ import annotations

from dist_train.config import Config
from dist_train.config.schema import (
    AverageOuter,
    Codistill,
    DelayCompensated,
    Distill,
    ElasticOuter,
    InverseDamping,
    NesterovOuter,
    Parallel,
)
from dist_train.optimizers.outer import moving_rate
from dist_train.plan import Plan, group_count
from dist_train.watch.figures import counted


def coupling_facts(config: Config, plan: Plan) -> dict[str, str]:
    """Return the rows, label to text, that a parameter-server mode adds to a run's arithmetic."""
    parallel = config.parallel
    if not parallel.has_server:
        return {}
    groups = group_count(parallel, plan.workers)
    facts = {
        "groups": f"{counted(groups, 'group')} of {counted(parallel.group_size, 'worker')}",
        "gradient": _gradient_text(config, plan),
        "update": _update_text(parallel, plan.quorum, groups),
        "staleness": _staleness_text(parallel, groups),
    }
    if damping := _damping_text(parallel):
        facts["damping"] = damping
    if parallel.fetch_every > 1:
        facts["fetching"] = f"parameters are read every {parallel.fetch_every} batches"
    if outer := _outer_text(parallel, groups):
        facts["outer optimizer"] = outer
    return facts


def replica_facts(config: Config) -> dict[str, str]:
    """Return the rows, label to text, that several replicas add to a run's arithmetic."""
    replicas, codistill = config.parallel.replicas, config.codistill
    if replicas == 1:
        return {}
    of_each = f"{counted(int(config.parallel.workers), 'worker')} each"
    if codistill is None:
        each = ", each trains on a bootstrap sample" if config.data.bootstrap else ""
        return {"replicas": f"{replicas} of {of_each}, not coupled: an ensemble{each}"}
    teachers = {"all": "all others", "ring": "the next one", "pairs": "the other of its pair"}
    data = {"disjoint": "a part of the data of its own", "same": "all of the data"}
    ramp = f", rising over {codistill.ramp:,} more" if codistill.ramp else ""
    weight = f"weight {codistill.weight:g} after {codistill.burn_in:,} steps{ramp}"
    by_snapshot = f", as of a snapshot every {codistill.interval:,} steps"
    known = ", by what they predict of the same batches" if codistill.by_prediction else by_snapshot
    return {
        "replicas": f"{replicas} of {of_each}, each trains on {data[codistill.data]}",
        "teachers": f"{teachers[codistill.topology]}{known}",
        "agreement": f"{_agreement_text(codistill)}, {weight}",
    }


def student_facts(config: Config) -> dict[str, str]:
    """Return the rows, label to text, that teachers which are done add to a run's arithmetic."""
    distill = config.distill
    if distill is None:
        return {}
    soft, hard = distill.soft_weight, 1 - distill.soft_weight
    return {
        "student of": ", ".join(distill.teachers),
        "distillation": f"{hard:g} x the task's loss + {soft:g} x agreement ({_agreement_text(distill)})",
    }


def _agreement_text(terms: Codistill | Distill) -> str:
    return terms.loss if terms.loss == "squared_error" else f"{terms.loss}, temperature {terms.temperature:g}"


def _gradient_text(config: Config, plan: Plan) -> str:
    parallel, train = config.parallel, config.train
    size = f"{plan.samples_per_gradient:,} samples"
    if train.batch_size is None:
        return f"{size} = {parallel.global_batch:,} / {counted(plan.quorum, 'gradient')} of an update"
    factors = [
        counted(parallel.group_size, "worker"),
        str(train.batch_size),
        f"{train.accumulate} accumulated",
    ]
    if parallel.push_every > 1:
        factors.append(f"{parallel.push_every} before each push")
    if parallel.local_steps > 1:
        factors.append(f"{parallel.local_steps} local steps")
    return f"{size} = {' x '.join(factors)}"


def _update_text(parallel: Parallel, quorum: int, groups: int) -> str:
    if parallel.mode == "backup" and parallel.backups == "auto":
        return f"all {groups} groups, until the number of backups is chosen from how long theirs take"
    if parallel.mode == "backup" and quorum < groups:
        late = "late ones are dropped, and their samples dealt again"
        return f"the first {quorum} of {groups} gradients (N = {quorum}, b = {groups - quorum}); {late}"
    if parallel.always_fresh:
        return f"one gradient from each of {counted(groups, 'group')}"
    if quorum == 1:
        return "each gradient on arrival"
    return f"any {quorum} gradients, in the order of arrival"


def _staleness_text(parallel: Parallel, groups: int) -> str:
    """The mean is that of groups which take turns (Chen et al. 2016, Zhang et al. 2015)."""
    if parallel.always_fresh:
        return "always 0"
    mean = f"about {(groups - 1) / parallel.aggregate:.3g} among even groups"
    if parallel.max_staleness is None:
        return f"{mean}, without a bound"
    # A reader at clock c finds the others at c - s at least, and they push up to c + s + 1.
    most = (groups - 1) * (2 * parallel.max_staleness + 1)
    ahead = counted(parallel.max_staleness, "gradient")
    return f"{mean}, at most {most}: no group begins when more than {ahead} ahead of another"


def _damping_text(parallel: Parallel) -> str | None:
    match parallel.damping:
        case InverseDamping():
            return "rate of a gradient / its staleness"
        case DelayCompensated() as damping:
            decay = f", decay {damping.decay:g}" if damping.variant == "adaptive" else ""
            return f"delay compensated, {damping.variant}, strength {damping.strength_in_force:g}{decay}"
    return None


def _outer_text(parallel: Parallel, groups: int) -> str | None:
    match parallel.outer_in_force:
        case AverageOuter():
            return "average: the mean of the groups' parameters"
        case NesterovOuter(lr=lr, momentum=momentum):
            return f"nesterov (lr {lr:g}, momentum {momentum:g}) on the mean of the groups' moves"
        case ElasticOuter() as elastic:
            share = moving_rate(elastic, groups)
            return f"elastic: a group and the centre each move {share:.3g} of the way to each other"
    return None
