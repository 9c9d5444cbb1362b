"""``stager pull``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import click

from stager.cli.conduct import Output, conduct
from stager.cli.metrics_options import with_metrics
from stager.cli.options import option, with_output
from stager.cli.pull_options import ASKED, DEST, Asked, destination, refuse_mistaken, with_pull_options
from stager.cli.store_options import with_store_options
from stager.core.location import Location
from stager.core.units import shown
from stager.engine import runtime
from stager.engine.recording import Account
from stager.jobs.options import PullOptions
from stager.store.opening import StoreOptions

if TYPE_CHECKING:
    from stager.engine.report import Reporter
    from stager.jobs.pull import Pull


@click.command("pull")
@click.argument("source", metavar="SOURCE", type=ASKED)
@click.argument("dest", metavar="[DEST]", required=False, type=DEST)
@with_pull_options
@option("--dry-run", is_flag=True, help="Say what would be pulled and removed; write nothing.")
@with_store_options
@with_metrics()
@with_output
def command(
    source: Asked,
    dest: Location | None,
    pull: Callable[..., PullOptions],
    store: StoreOptions,
    account: Callable[..., Account],
    *,
    dry_run: bool,
    output: Output,
) -> int:
    """Bring a model from a hub into OSS or a folder: streamed through memory, every byte proven, marked complete last.

    SOURCE is OWNER/NAME[@REVISION] on ModelScope, hf://OWNER/NAME on Hugging Face, or a folder (./NAME), whose links are
    followed. DEST is oss://BUCKET/PREFIX, or a folder, on a disk or mounted; without it, the model's name below STAGER_DEST. A
    run that was cut short goes on where it was; a second one sends nothing. Tokens are read from the environment.

    \b
    Examples:
      stager pull deepseek-ai/DeepSeek-R1-0528 oss://bucket/models/DeepSeek-R1-0528
      stager pull Qwen/Qwen3-32B --for vllm                with STAGER_DEST=oss://bucket/models
      stager pull unsloth/Qwen3-32B-GGUF --for llama.cpp --quant Q4_K_M
      stager pull hf://openai/gpt-oss-120b@main /mnt/nas/gpt-oss-120b --exclude 'original/*'
      stager pull ./my-fine-tune oss://bucket/models/my-fine-tune --mirror
    """
    to = destination(source, dest)
    options = pull(source.source, to, store)
    kept = None if dry_run else account("pull", [str(to)], str(options.source))
    return conduct(output, partial(_Begun, source, options, dry_run=dry_run), account=kept)


class _Begun:
    """A pull, after a look at what its words may mean here: a look may hang in a mount, so a job takes it."""

    def __init__(self, asked: Asked, options: PullOptions, reporter: Reporter, *, dry_run: bool) -> None:
        self._asked, self._options, self._reporter, self._dry_run = asked, options, reporter, dry_run
        self._pull: Pull | None = None

    async def run(self) -> int:
        """As `Pull.run`, or `Pull.forecast`."""
        look = partial(refuse_mistaken, self._asked, self._options.dest)
        await runtime.in_thread(f"looking for {shown(self._asked.text)}", look)
        from stager.jobs.pull import Pull

        self._pull = Pull(self._options, self._reporter)
        return await (self._pull.forecast() if self._dry_run else self._pull.run())

    def withdraw(self, reason: str) -> None:
        """As `Pull.withdraw`, but that a forecast has nothing to say."""
        if self._pull is not None and not self._dry_run:
            self._pull.withdraw(reason)

    def stuck(self) -> list[str]:
        """As `Pull.stuck`."""
        return self._pull.stuck() if self._pull is not None else []
