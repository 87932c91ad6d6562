"""`stream-dmgin NOUN VERB`. Each noun lives in its own file of this folder and is imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from stream_dmgin.errors import StreamDmginError, UsageError

NOUNS = {
    "demo": "the main job, whole: log, simulator, worker, live view, summary",
    "topics": "apply, list, check, export, import",
    "worker": "the processor: folds events, answers score requests",
    "simulate": "a city of shops and users with a known click probability",
    "data": "import public logs or your own tables",
    "groups": "item groups: build, import, show, list, publish, prune",
    "state": "what is known of users: users, show, stats, verify, erase; snapshot, restore, rebuild, compact, diff, rescale",
    "lag": "how far stores and group are behind the log",
    "doctor": "look at everything a worker needs, and say what is wrong and the fix",
    "dead-letters": "records that could not be processed: list, show, replay, skip",
    "score": "one request by hand, with an explanation",
    "train": "train a model on a replayed log",
    "refit": "the running model learns from what came since, guarded by a replayed comparison",
    "evaluate": "train, replay and measure on a public log",
    "lifelong": "how near models come to the truth, by length of life, in the simulated city",
    "model": "list, show, check, export",
    "replay": "events through the same code, offline; verify scores",
    "ab": "compare models over one replay",
    "bench": "the product's own measurements",
    "config": "show the settings in force, and where each came from",
}
INTERRUPTED = 130
UNREAD = 141  # as a shell says of a process that SIGPIPE ended


class _Nouns(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(NOUNS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in NOUNS:
            return None
        command: click.Command = importlib.import_module("stream_dmgin.cli." + name.replace("-", "_")).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):  # without importing every noun
            formatter.write_dl(list(NOUNS.items()))


@click.group(cls=_Nouns, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="stream-dmgin")
def cli() -> None:
    """A streaming feature and scoring engine for location-based ads.

    Settings: flag, then STREAM_DMGIN_* in the environment, then stream-dmgin.toml, then default; `config show` tells.
    Exit codes: 0 done, 1 a check found a difference or a failure, 2 wrong usage, configuration or input,
    3 a broker, store or other dependency can't be reached, 130 interrupted.
    """


def denied(e: PermissionError) -> str:
    """What to say where the account may not read or write a file."""
    what = e.filename if e.filename is not None else e
    return f"{what}: this account (uid {os.geteuid()}) has no permission ({e.strerror}): chown or chmod it, or run under its owner's"


def main(argv: list[str] | None = None) -> Any:
    """Entry point; turns errors into one line on stderr and an exit code."""
    try:
        code = cli.main(args=argv, prog_name="stream-dmgin", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except StreamDmginError as e:
        click.echo(f"stream-dmgin: {e}", err=True)
        sys.exit(e.exit_code)
    except click.ClickException as e:
        e.show()
        sys.exit(2)
    except PermissionError as e:
        click.echo(f"stream-dmgin: {denied(e)}", err=True)
        sys.exit(UsageError.exit_code)
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as e:
        click.echo(f"stream-dmgin: {e.filename2 or e.filename}: {e.strerror}: give another path", err=True)
        sys.exit(UsageError.exit_code)
    except BrokenPipeError:  # `| head`. The signal itself stays ignored: a peer that goes away must not end a worker
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(UNREAD)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stream-dmgin: interrupted", err=True)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
