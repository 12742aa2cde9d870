"""A progress bar."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tost.loop import Callback, Run


class ProgressBar(Callback):
    """A bar on stderr, gone when the run ends; nothing where stderr is no terminal."""

    def __init__(self, title: str) -> None:
        self.title = title
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(title, total=None)

    def on_start(self, run: Run) -> None:
        self.progress.update(self.task, total=run.total_steps, completed=run.step)
        self.progress.start()

    def after_step(self, run: Run) -> None:
        self.progress.update(self.task, completed=run.step)

    def on_epoch_end(self, run: Run) -> None:
        accuracy = run.line.get("test_accuracy")
        if accuracy is not None:
            self.progress.update(self.task, description=f"{self.title}  {100 * accuracy:.1f}%")

    def on_end(self, run: Run) -> None:
        self.progress.stop()
