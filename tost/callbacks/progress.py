"""A progress bar."""

from __future__ import annotations

from tost.loop import Callback, Run
from tost.progress import step_bar


class ProgressBar(Callback):
    """A bar on stderr, gone when the run ends; nothing where stderr is no terminal."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.progress = step_bar()
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
