"""``tokenloom``: the command line. Every command is a thin layer over functions that can be imported.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 75 come back (preempted), 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
import traceback
from typing import Any

import click

from tokenloom.flows.cli.options import EXIT_AGAIN, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from tokenloom.flows.guard import ending, guard
from tokenloom.tasks.runtime.surroundings import check_here, leave_here, open_streams, settle

#: Command to the module that holds it, and its line in the list of commands: a module is imported when its command is used, so that
#: help comes at once.
COMMANDS = {
    "run": ("run", "The whole pipeline: raw images in, an evaluated, registered model out."),
    "plan": ("run", "What `run` would do and why, running nothing."),
    "sweep": ("sweep", "Try out settings of a run: ranges and choices, each trial a normal run."),
    "sample": ("sample", "Draw samples from a model."),
    "compare": ("look", "A leaderboard of runs under one protocol: table, plot, sample grids."),
    "methods": ("look", "The family: every method by its kind, and its part on each axis."),
    "decoders": ("look", "Ways to decode: whether each is exact, what it needs, its paper."),
    "runs": ("show", "The runs in the store: how far each is, its newest artifacts and its numbers."),
    "show": ("show", "One run or artifact: status, numbers, lineage both ways, pictures."),
    "serve": ("run", "Retrain on a schedule, until it is stopped."),
    "serve-model": ("serve_model", "Answer requests for samples of a model over HTTP, many at once."),
    "submit": ("cloud", "Carry out a run as a job of AWS Batch."),
    "node": ("cloud", "Carry out this machine's part of a submission."),
    "promote": ("champion", "Make a registered version the champion, with who and why."),
    "rollback": ("champion", "Make the champion before the present one the champion again."),
    "import": ("store", "An official checkpoint becomes an artifact."),
    "export": ("store", "A tokenizer or generator becomes a folder with weights and a model card."),
    "ui": ("ui", "Open the MLflow and Prefect pages on 127.0.0.1, until Ctrl-C."),
    "doctor": ("doctor", "Check what a run needs: versions, disk, cores, GPUs, store, tracking, artifacts."),
    "gc": ("store", "Remove what no record refers to: half-written folders, loose shards, old checkpoints."),
}

#: Commands with servers below them, which a signal for the whole group must not reach.
GUARDED = ("run", "sweep", "serve", "ui", "node")


class _Commands(click.Group):
    """Commands that are imported on use, in the order of a person's first day rather than of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"tokenloom.flows.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_" if cmd_name == "import" else cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
First steps:
  tokenloom doctor                         is everything in place?
  tokenloom plan digits_var                what would run, and why
  tokenloom run digits_var                 raw images to a registered model, a few minutes on two cores
  tokenloom sample models:/digits-var@champion --n 100 --out samples.png
  tokenloom ui                             look at it in MLflow and Prefect

\b
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 75 come back (preempted), 130 interrupted.
Environment: TOKENLOOM_ROOT, TOKENLOOM_STORE, MLFLOW_TRACKING_URI, PREFECT_API_URL, AWS_*.""",
)
@click.version_option(package_name="tokenloom")
def cli() -> None:
    """Tokenloom trains autoregressive generative models end to end.

    Raw images in; an evaluated, registered, servable model out: ingest, train a tokenizer, extract tokens, train a
    generator, evaluate, register. A step whose artifact is in the store is not done again.
    """


def _terminated(number: int, _frame: Any) -> None:
    """SIGTERM, the way in which a machine is taken back: unwind, so that everything is closed, and ask to come back."""
    from tokenloom.tasks.runtime.errors import Preempted

    raise Preempted("terminated (SIGTERM): the same command goes on from the last checkpoint")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; one clear message for every kind of failure."""
    open_streams()
    leave_here()
    settle()
    given = sys.argv[1:] if arguments is None else arguments
    if next(iter(given), None) in GUARDED and not {"-h", "--help"} & set(given):
        guard()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(code_of(given))
    finally:
        ending()


def code_of(arguments: list[str] | None = None) -> int:
    """Exit code of a command line, after its messages are printed."""
    from tokenloom.models.core.marks import ConfigError
    from tokenloom.tasks.runtime.errors import Preempted, StepError

    try:
        check_here()
        result = cli.main(args=arguments, prog_name="tokenloom", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as ended:
        return int(ended.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _say("stopped; the same command goes on from here", EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE if error.exit_code == 2 else error.exit_code
    except ConfigError as error:
        return _say(str(error), EXIT_USAGE)
    except Preempted as error:
        return _say(str(error), EXIT_AGAIN)
    except StepError as error:
        return _say(str(error), EXIT_FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; nothing left to say
        return EXIT_FAILED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _say(f"{error.strerror}: {error.filename or 'a disk of this run'}; make room, the same command goes on", EXIT_FAILED)
        if isinstance(error, OSError) and error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return _say(f"{error.strerror}: {error.filename}; choose another place, or mend its permissions", EXIT_FAILED)
        logging.getLogger("tokenloom").error("unexpected", exc_info=True)
        if os.environ.get("TOKENLOOM_DEBUG"):
            traceback.print_exc()
        return _say(f"{type(error).__name__}: {error} (this is unexpected; TOKENLOOM_DEBUG=1 shows where)", EXIT_FAILED)


def _say(message: str, code: int) -> int:
    for line in message.splitlines() or [""]:
        click.echo(f"tokenloom: {line}", err=True)
    return code


if __name__ == "__main__":
    main()
