"""The `graphopt` command: its verbs are imported only when one is called.

Exit codes: 0 done; 1 ran, but a target or budget was not met; 2 the request or the model is at
fault; 3 our fault, a reproducer is named; 130 interrupted.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import click

from graphopt.errors import GraphoptError

__all__ = ["VERBS", "cli", "main"]

VERBS = {
    "bench": ("graphopt.cli.measure", "Time a model, and others against it in pairs."),
    "compare": ("graphopt.cli.measure", "Compare two models: outputs, metric, structure."),
    "inspect": ("graphopt.cli.inspect", "Show what a model consists of and costs."),
    "optimize": ("graphopt.cli.optimize", "Make a model smaller and faster, every step checked."),
    "pack": ("graphopt.cli.pack", "Pack a model into the fewest bytes that restore it exactly."),
    "passes": ("graphopt.cli.manual", "List the passes, or show the manual of one."),
    "recipes": ("graphopt.cli.manual", "List the recipes, or show one."),
    "unpack": ("graphopt.cli.pack", "Restore a packed model, byte for byte."),
}


class _Verbs(click.Group):
    """Lists verbs without importing them, so that --help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            from graphopt.registry import nearest

            if not ctx.resilient_parsing:  # as when a shell completes
                ctx.fail(f"there is no command {cmd_name!r}; {nearest(cmd_name, VERBS)}")
            return None
        command = getattr(importlib.import_module(VERBS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command), f"{cmd_name} is not a command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, about) for verb, (_, about) in sorted(VERBS.items())])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metadata.version("graphopt"), prog_name="graphopt")
@click.option(
    "-v", "--verbose", count=True, help="Log every pass that changes something; twice: every edit."
)
def cli(verbose: int) -> None:
    """Make a trained network smaller and faster; every step is checked, every gain measured.

    MODEL is an ONNX file, or file.py:factory, a function that returns a PyTorch module and its
    example inputs. The input file is never changed.

    Exit codes: 0 done; 1 a target or budget was not met, the best so far is written; 2 the request
    or the model is at fault, one line says why; 3 our fault; 130 interrupted.

    Shell completion: eval "$(_GRAPHOPT_COMPLETE=bash_source graphopt)" (or zsh_source,
    fish_source).
    """
    levels = [logging.WARNING, logging.INFO, logging.DEBUG]
    logging.basicConfig(level=levels[min(verbose, 2)], format="%(name)s: %(message)s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        code = cli.main(
            None if arguments is None else list(arguments),
            prog_name="graphopt",
            standalone_mode=False,
        )
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = 2
    except click.UsageError as error:
        where = error.ctx.command_path.removeprefix("graphopt").strip() if error.ctx else ""
        _say(f"{where}: {error.format_message()}" if where else error.format_message())
        code = 2
    except click.ClickException as error:
        _say(error.format_message())
        code = 2
    except (click.Abort, KeyboardInterrupt):
        _say(
            "interrupted; no output was written; what is finished stays in the --workdir, if one "
            "was given, and the same command goes on from there"
        )
        code = 130
    except GraphoptError as error:
        _say(str(error))
        code = 2
    except MemoryError:
        _say("out of memory; use fewer inputs, or a machine with more")
        code = 2
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    except Exception as error:  # noqa: BLE001 (the edge: what nobody foresaw is our fault)
        code = _our_fault(error)
    sys.exit(code or 0)


def _say(message: str) -> None:
    """One line, red on a terminal."""
    text = " ".join(message.split())
    click.secho(f"graphopt: {text}", fg="red", err=True)


def _our_fault(error: Exception) -> int:
    """Report a failure nobody foresaw; a pass's has its reproducer, others leave the traceback."""
    if type(error).__name__ == "PassFailure":
        _say(str(error))
        return 3
    import traceback

    path = Path("graphopt-failure.txt")
    command = " ".join(sys.argv)
    try:
        path.write_text(f"$ {command}\n\n{''.join(traceback.format_exception(error))}")
        where = f"command and traceback are in {path.resolve()}"
    except OSError:
        where = f"at {traceback.extract_tb(error.__traceback__)[-1]}"
    _say(f"internal error: {type(error).__name__}: {error}; {where}; please report it")
    return 3
