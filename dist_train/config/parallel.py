"""How workers are coupled: the section ``parallel`` of the configuration.

What cannot go together is in combinations.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dist_train.config.section import (
    Fraction,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Section,
    Share,
)

# Zheng et al. 2016: lambda of the constant variant on CIFAR-10, lambda_0 of the adaptive one.
STRENGTHS = {"constant": 0.04, "adaptive": 2.0}


class NoDamping(Section):
    """A stale gradient counts like a fresh one."""

    kind: Literal["none"] = "none"


class InverseDamping(Section):
    """Zhang et al. 2015: the rate of a gradient is divided by its staleness."""

    kind: Literal["inverse"] = "inverse"


class DelayCompensated(Section):
    """Zheng et al. 2016: the gradient is moved towards the one of the newest parameters."""

    kind: Literal["delay_compensated"] = "delay_compensated"
    variant: Literal["constant", "adaptive"] = "adaptive"
    # lambda; null: 0.04 for constant, 2 for adaptive. 0 compensates nothing.
    strength: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    # adaptive: how slowly the mean of squared gradients forgets.
    decay: Fraction = 0.95

    @property
    def strength_in_force(self) -> float:
        return STRENGTHS[self.variant] if self.strength is None else self.strength


AnyDamping = Annotated[NoDamping | InverseDamping | DelayCompensated, Field(discriminator="kind")]


class AverageOuter(Section):
    """Local SGD (Stich 2018): the server takes the mean of the members' parameters."""

    kind: Literal["average"] = "average"


class NesterovOuter(Section):
    """DiLoCo (Douillard et al. 2023): Nesterov's momentum on the mean of the members' moves."""

    kind: Literal["nesterov"] = "nesterov"
    # Not scheduled: the members' own rate decays, and their moves with it.
    lr: Positive = 0.7
    momentum: Fraction = 0.9


class ElasticOuter(Section):
    """Zhang, Choromanska and LeCun 2015: a member and the centre are drawn towards each other."""

    kind: Literal["elastic"] = "elastic"
    # alpha, the share of their distance that each of them moves; null: 0.9 / groups.
    moving_rate: Share | None = None


AnyOuter = Annotated[AverageOuter | NesterovOuter | ElasticOuter, Field(discriminator="kind")]


class Server(Section):
    """The parameter server; without meaning in mode sync."""

    # Processes that each hold one slice of the parameters and its optimizer state.
    shards: PositiveInt = 1
    # 2: a second copy of each shard goes on, without loss, when the first is killed.
    copies: Annotated[int, Field(ge=1, le=2, strict=True)] = 1
    # Updates between snapshots in memory: what a killed shard without a second copy may lose.
    snapshot_every: PositiveInt = 50
    # What is said for every gradient goes straight from process to process on one node; false: through Ray.
    direct: bool = True


class Cluster(Section):
    """Where the processes of a parameter-server mode run."""

    # HOST:PORT of a Ray cluster to join, or auto; null: this machine alone. Mode sync joins none.
    address: Annotated[str, Field(min_length=1)] | None = None
    # CPUs that each worker asks of the cluster.
    worker_cpus: PositiveInt = 1
    # How long to wait while the cluster is busy.
    wait_s: Positive = 60.0


class Parallel(Section):
    mode: Literal["sync", "backup", "async", "bounded"] = "sync"
    # Per replica; in mode backup N + b. "auto": one for each GPU, or a single worker on the CPU.
    workers: PositiveInt | Literal["auto"] = "auto"
    # Parameter-server modes: workers that all-reduce among themselves and act as one.
    group_size: PositiveInt = 1
    # Mode backup: groups, b, whose gradients each update does without. "auto": chosen from how long
    # those of the first updates take.
    backups: NonNegativeInt | Literal["auto"] = 0
    # Mode bounded: how many gradients, s, the fastest group may be ahead of the slowest; 0: nobody is.
    max_staleness: NonNegativeInt | None = None
    # Mode async: gradients averaged in one update; 1 applies each on arrival, more is softsync.
    aggregate: PositiveInt = 1
    # What a stale gradient is worth.
    damping: AnyDamping = NoDamping()
    # Mode async, as in Downpour: batches between two reads of the parameters, during which a group goes on
    # by plain SGD on its own, and batches whose mean gradient is sent at once.
    fetch_every: PositiveInt = 1
    push_every: PositiveInt = 1
    # Steps that each group makes with an optimizer of its own before it sends how far it came.
    local_steps: PositiveInt = 1
    # What the server makes of that; null: average if local_steps is above 1, else there are no local steps.
    outer: AnyOuter | None = None
    server: Server = Server()
    cluster: Cluster = Cluster()
    # Models trained side by side; they teach one another where there is a section codistill.
    replicas: PositiveInt = 1
    # Samples of one update over all workers; given instead of train.batch_size it stays constant
    # whatever the number of workers.
    global_batch: PositiveInt | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # How long a collective may wait for a missing peer.
    timeout_s: Positive = 300.0
    # Gradients exchanged at once; null: torch's choice (25, and 1 for the first bucket).
    bucket_mb: Positive | None = None
    # For models that leave parameters unused in some steps; costs a walk through the graph in every step.
    find_unused_parameters: bool = False
    # How gradients travel. powersgd keeps a residual on each worker that is not part of a checkpoint:
    # a resumed run begins again with powersgd_start uncompressed steps.
    compression: Literal["none", "bf16", "powersgd"] = "none"
    powersgd_rank: PositiveInt = 2
    powersgd_start: Annotated[int, Field(ge=2, strict=True)] = 1000
    sync_batch_norm: bool = False

    @property
    def has_server(self) -> bool:
        """Whether groups share their parameters through a parameter server."""
        return self.mode != "sync"

    @property
    def outer_in_force(self) -> AverageOuter | NesterovOuter | ElasticOuter | None:
        """What the server does with local steps; None where it applies gradients."""
        return AverageOuter() if self.outer is None and self.local_steps > 1 else self.outer

    @property
    def reads_in_place(self) -> bool:
        """Whether members may compute on the server's own memory, which they must not write to."""
        reads_each = self.group_size == 1 and self.fetch_every == 1 and self.outer_in_force is None
        return reads_each and self.server.shards == 1 and not self.needs_base

    @property
    def needs_base(self) -> bool:
        """Whether the server must see the parameters that a gradient was computed from."""
        return self.damping.kind == "delay_compensated"

    @property
    def always_fresh(self) -> bool:
        """Whether every gradient that counts was computed from the newest parameters."""
        return self.mode in ("sync", "backup") or (self.mode == "bounded" and self.max_staleness == 0)
