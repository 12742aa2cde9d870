"""What the tests of launchers let do in other processes; light to import."""

import os
import signal
import time
from pathlib import Path


def work(what: str) -> str:
    """`good`, `bad`, `dies`; `is preempted FOLDER`, the first time; `waits FOLDER`, for a file named `go` in it."""
    name, _, folder = what.partition(" /")
    place = Path("/" + folder)
    if name == "bad":
        raise ArithmeticError("that was bad")
    if name == "dies":
        os._exit(3)
    if name == "is preempted" and not (place / "began").exists():
        (place / "began").touch()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(60)
    if name == "waits":
        (place / f"waiting-{os.getpid()}").touch()
        while not (place / "go").exists():
            time.sleep(0.05)
    return f"{name}, done"
