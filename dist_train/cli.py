"""argv to a run. torch is imported only after everything that can be refused has been read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from dist_train.errors import FAILED, REFUSED, ConfigError, TrainingError

app = typer.Typer(
    name="dist-train",
    help="Train any PyTorch model on many workers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Panels take longer to import than everything else that --help needs.
    rich_markup_mode=None,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The run's configuration.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Values that replace those of the file."),
]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", metavar="DIR", help="Default: runs/NAME/TIME.", show_default=False)
]
Resume = Annotated[
    str,
    typer.Option(
        metavar="auto|none|PATH",
        help="auto: continue from the newest checkpoint in the run directory, if any. none: start anew. "
        "PATH: start from another run's directory or from one checkpoint.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT|auto",
        help="Ray cluster to join in a parameter-server mode; auto: the one this machine is part of. "
        "Sets parallel.cluster.address.",
        show_default=False,
    ),
]
JobsAddress = Annotated[
    str, typer.Option("--address", metavar="http://HOST:8265", help="Ray's dashboard on the cluster's head.")
]
JobsRunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="DIR", help="Where the run is, on the cluster.", show_default=False),
]
WorkingDir = Annotated[
    Path, typer.Option("--working-dir", metavar="DIR", help="What is sent along; CONFIG.yaml lies in it.")
]
RunDirs = Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="Directories of runs that are done.")]
Checkpoints = Annotated[
    str | None,
    typer.Option(metavar="STEP,...", help="Measure these checkpoints in place of what was delivered."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of the table.")]
Teachers = Annotated[
    list[Path],
    typer.Option("--teacher", metavar="RUN_DIR", help="A run that is done; may be given several times."),
]
AnyRunDirs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN_DIR", help="Directories of runs that are done, going on, or broken off."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE_OR_DIR",
        help="Where to write: a directory, or a page that ends in .html. "
        "Default: RUN_DIR/report, and with several runs ./report.",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved configuration and the arithmetic, then exit.")
]


@app.callback()
def _commands() -> None:
    """Train any PyTorch model on many workers; how tightly they are coupled is configuration."""


@app.command(short_help="Train.")
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    resume: Resume = "auto",
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Train. Starts the workers itself; under torchrun or srun the same command line is one worker.

    Exit status: 0 done, 1 failed, 2 refused (nothing was started), 75 interrupted and saved.
    """
    replaced = list(overrides or ())
    if address is not None:
        replaced.append(f"parallel.cluster.address={json.dumps(address)}")
    _train(config, replaced, run_dir, resume, dry_run)


@app.command(short_help="Train a student of runs that are done.")
def distill(
    config: ConfigPath,
    teacher: Teachers,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
) -> None:
    """Train a student of runs that are done: of one model, or of the ensemble of several.

    It learns the mean of the teachers' predictions beside the labels (section distill of the configuration),
    and is otherwise a run like any other. Exit status: as of run.
    """
    teachers = json.dumps([str(each) for each in teacher])
    _train(config, [*(overrides or ()), f"distill.teachers={teachers}"], run_dir, resume, dry_run)


def _train(config: Path, overrides: list[str], run_dir: Path | None, resume: str, dry_run: bool) -> None:
    from dist_train.runtime.start import Request, dry_run_text, run_request

    request = Request(config, tuple(overrides), run_dir, resume)
    if dry_run:
        typer.echo(dry_run_text(request))
        raise typer.Exit
    raise typer.Exit(run_request(request))


@app.command(short_help="Train on a Ray cluster, as a job.")
def submit(
    config: ConfigPath,
    address: JobsAddress,
    overrides: Overrides = None,
    run_dir: JobsRunDir = None,
    resume: Resume = "auto",
    working_dir: WorkingDir = Path(),
) -> None:
    """Train on a Ray cluster: send the run there as a job, follow its output, and end as it ends.

    --run-dir has to be given: an absolute path on the cluster, on storage that its machines share. Ctrl-C
    stops the job, which saves first; a second one leaves it running. The exit status is that of the run.
    """
    from dist_train.runtime.submit import Submission, send

    raise typer.Exit(send(Submission(address, config, run_dir, tuple(overrides or ()), resume, working_dir)))


@app.command(short_help="Make a run again from its log, and compare.")
def replay(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")]) -> None:
    """Make a parameter-server run again from its log, in one process, and compare; 1 where it differs.

    The parameters are the same bit for bit if the run had train.deterministic and was on CPUs like this one.
    """
    from dist_train.replay import replay as made_again

    typer.echo(made_again(run_dir))


@app.command(short_help="Measure what runs delivered, and how far two are apart.")
def evaluate(run_dirs: RunDirs, as_json: AsJson = False, checkpoints: Checkpoints = None) -> None:
    """Measure the models that runs delivered on their validation sets, and the ensemble of a run's replicas.

    With two runs, also how far their predictions are apart (churn). With --checkpoints, a run's model at
    several times and the ensemble of those. Uses one process, on the run's kind of device. Exit status: 0
    done, 2 where there is nothing that can be measured or compared.
    """
    from dist_train.evaluate import evaluate as measured
    from dist_train.watch.records import to_json

    report = measured(run_dirs, _steps(checkpoints))
    typer.echo(to_json(report.record(), indent=2) if as_json else report.text())


@app.command(short_help="Write a page of charts about runs, side by side.")
def report(run_dirs: AnyRunDirs, output: Output = None) -> None:
    """Write a page about runs, side by side: curves, where the time went, faults, and settings that differ.

    The page needs no network. Beside it are the charts as PNG, and trace.json, a timeline of the workers that
    ui.perfetto.dev opens. Exit status: 0 done, 2 where a directory is that of no run.
    """
    from dist_train.report import report as written

    files = written(run_dirs, output)
    typer.echo(f"page      {files.page}")
    typer.echo(f"timeline  {files.trace}")
    if files.images:
        typer.echo(f"charts    {len(files.images)} PNG files in {files.images[0].parent}")


@app.command(short_help="List and verify a run's checkpoints.")
def checkpoints(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")]) -> None:
    """List the checkpoints of a run, each verified against its checksums; 1 if one is damaged."""
    from dist_train.runtime.start import VERIFIED, checkpoint_lines

    lines = checkpoint_lines(run_dir)
    for line in lines:
        typer.echo(line)
    if not all(line.endswith(VERIFIED) for line in lines):
        raise typer.Exit(FAILED)


def _steps(checkpoints: str | None) -> list[int]:
    """Read numbers between commas; raises ConfigError for anything else."""
    try:
        return [int(each) for each in checkpoints.split(",")] if checkpoints is not None else []
    except ValueError:
        raise ConfigError(
            f"--checkpoints {checkpoints}: give steps with commas between them, e.g. 200,400"
        ) from None


def main() -> None:
    """Run the command line; a refusal is one line for each problem on stderr and exit status 2."""
    try:
        app()
    except ConfigError as error:
        for problem in error.problems:
            print(f"dist-train: {problem}", file=sys.stderr)
        sys.exit(REFUSED)
    except (TrainingError, OSError) as error:
        print(f"dist-train: {error}", file=sys.stderr)
        sys.exit(FAILED)
