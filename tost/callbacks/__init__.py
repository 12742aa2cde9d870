"""What happens around a training step: the loop in tost/loop.py only steps, everything else enters here."""

from tost.callbacks.average import Average
from tost.callbacks.checkpoint import Checkpoint, Stopped
from tost.callbacks.evaluate import Evaluate, KeepBest
from tost.callbacks.ghost_fade import GhostFade
from tost.callbacks.guard import NonFiniteLoss, StopAtNonFinite, StopAtSignal
from tost.callbacks.learning_rate import LearningRate, learning_rate_at
from tost.callbacks.network_at import NetworkAt
from tost.callbacks.progress import ProgressBar
from tost.callbacks.record import Record
from tost.callbacks.soft_filters import SoftFilters
from tost.callbacks.solution_path import RecordPath
from tost.callbacks.tensorboard import TensorBoard
from tost.loop import Callback, Run

__all__ = [
    "Average",
    "Callback",
    "Checkpoint",
    "Evaluate",
    "GhostFade",
    "KeepBest",
    "LearningRate",
    "NetworkAt",
    "NonFiniteLoss",
    "ProgressBar",
    "Record",
    "RecordPath",
    "Run",
    "SoftFilters",
    "StopAtNonFinite",
    "StopAtSignal",
    "Stopped",
    "TensorBoard",
    "learning_rate_at",
]
