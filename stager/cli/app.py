"""The command group, and the one place where errors become text and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import NoReturn

import click

from stager import __version__
from stager.cli.words import Words
from stager.core.errors import StagerError, UsageError
from stager.core.events import Failure

_COMMANDS = {
    "pull": "Bring a model from a hub into OSS or a folder, streamed, and prove every byte.",
    "fetch": "Download a model from OSS into a folder, prove every byte, and leave it warm.",
    "warm": "Read model files into the page cache, prove it, and open the gate.",
    "check": "Say what a run would do and how it would end, here or in a store; change nothing.",
    "verify": "Read a model where it lies, and hold every byte against its manifest.",
    "ls": "List a model in a store: sizes, completeness, manifest.",
    "status": "Show what is resident now, file by file, and how that is known.",
    "run": "Warm, or fetch and warm, then become the engine.",
    "ready": "Answer by exit code whether the marker says ready and is still true.",
    "wait": "Wait until `ready` would say yes.",
    "evict": "Give the pages of files back to the system.",
    "bench": "Measure how fast a storage loads a model, cold and again, by several ways.",
    "install": "Copy the self-contained program into a folder, for containers without Python.",
}
_MAIN_PROCESSES = ("pull", "fetch", "warm", "run")  # of containers; a probe that fails is nobody's last word


class _Group(click.Group):
    """Imports a command's module when the command is used: `--help` needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"stager.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="stager", message="%(prog)s %(version)s")
def _stager() -> None:
    """Model files from the hub into OSS, from OSS onto this node, and into the page cache, verified, before the engine starts.

    \b
    Examples:
      stager pull owner/r1 oss://bucket/models/r1        from ModelScope into OSS, streamed, proven
      stager fetch oss://bucket/models/r1 /models/r1     download it, prove it, leave it warm
      stager check /models/r1                            will it fit, will it stay, is it whole?
      stager warm /models/r1 -P 16                       read it into memory, write the ready marker
      stager run --warm /models/r1 -- vllm serve /models/r1
      stager ready                                       0 when warm, for a probe

    \b
    Exit codes: 0 done, 1 bug, 2 usage, 3 the answer is no, 4 memory or disk refused, 5 remote trouble,
    6 access, 7 not found, 8 incomplete or corrupt, 9 local I/O, 10 deadline or stall,
    11 the mount drops pages, 128+N signal N.
    """


def run(argv: list[str]) -> NoReturn:
    """Run the command in `argv` and leave with its exit code."""
    words = Words(argv)
    try:
        code = _stager.main(args=argv, prog_name="stager", standalone_mode=False)
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except click.ClickException as exc:
        code = say(_from_click(exc, words), words)
    except StagerError as exc:
        code = say(exc, words)
    except (OSError, SystemExit) as exc:  # click makes SystemExit of EPIPE
        if not words.only_tell:
            code = _bug(exc, words)
        else:  # nobody takes the help: a full disk, a reader that went away
            code = 0
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python still holds back
    except ModuleNotFoundError as exc:
        code = _bug(exc, words) if _is_ours(exc) else say(_left_out(exc, words), words)
    except Exception as exc:
        code = _bug(exc, words)
    leave(code if isinstance(code, int) else 0)


def _bug(exc: BaseException, words: Words) -> int:
    """One line for people, the traceback on request."""
    if words.traceback:
        import traceback

        traceback.print_exc()
    hint = None if words.traceback else "this is a bug of stager; `-vv` shows where"
    return say(StagerError(f"{type(exc).__name__}: {exc}", hint=hint), words)


def _is_ours(exc: ModuleNotFoundError) -> bool:
    return (exc.name or "stager").split(".")[0] == "stager"


def _left_out(exc: ModuleNotFoundError, words: Words) -> UsageError:
    """The self-contained program leaves the hubs' libraries out; an installation by hand may lack any."""
    library = (exc.name or "").split(".")[0]
    return UsageError(
        f"this `stager {words.first}` needs the library {library}, which is not part of this installation",
        hint=f"the image stager:{__version__} (the one without `-warm`) has it, and `pip install stager` brings it",
    )


def say(error: StagerError, words: Words) -> int:
    """Print `error` as text on stderr, or as JSON on stdout when that was asked for; its exit code."""
    from stager.engine.report import make_reporter

    if words.first in _MAIN_PROCESSES:
        from stager.core.last_words import failed
        from stager.node.notify import write_termination_log

        write_termination_log(failed(words.first, error.exit_code, error.slug, error.message, error.hint))
    reporter = make_reporter(json=words.json, progress="none")
    reporter.emit(Failure.of(error))
    reporter.close()
    return error.exit_code


def _from_click(exc: click.ClickException, words: Words) -> UsageError:
    message = exc.format_message()
    message = message[:1].lower() + message[1:].rstrip(".")
    command = f"stager {words.first}" if words.first in _COMMANDS else "stager"
    return UsageError(message + _origin(exc), hint=f"see `{command} --help`")


def _origin(exc: click.ClickException) -> str:
    """Says so when the value came from the environment: nobody finds it on the command line."""
    if not isinstance(exc, click.BadParameter) or exc.ctx is None or exc.param is None:
        return ""
    name = exc.param.envvar
    source = exc.ctx.get_parameter_source(exc.param.name or "")
    if source is not click.core.ParameterSource.ENVIRONMENT or not isinstance(name, str):
        return ""
    return f" (from the environment: {name})"


def leave(code: int) -> NoReturn:
    """Exit with `code`, also when a thread hangs in a read: an ordinary exit would wait for it for ever."""
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)
