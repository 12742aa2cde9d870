import pytest
import torch
from torch import Tensor

from tost.losses import Distillation, cross_entropy


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(5, 4, dtype=torch.float64, requires_grad=True)


TARGETS = torch.tensor([0, 3, 1, 1, 2])


@pytest.mark.parametrize("a", [0.0, 0.1, 0.5])
def test_label_smoothing_is_the_posters_formula(logits: Tensor, a: float) -> None:
    y = torch.nn.functional.one_hot(TARGETS, 4).double()
    expected = -((y * (1 - a) + a / 4) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(cross_entropy(a)(logits, TARGETS), expected)


def test_distillation_is_the_formula(logits: Tensor) -> None:
    teacher = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    t, a = 5.0, 0.9
    p = (teacher / t).softmax(1)
    kl = (p * (p.log() - (logits / t).log_softmax(1))).sum(1).mean()
    ce = -logits.log_softmax(1)[torch.arange(5), TARGETS].mean()
    loss = Distillation(t, a)(logits, teacher, TARGETS)
    torch.testing.assert_close(loss, a * t * t * kl + (1 - a) * ce)
    loss.backward()
    assert teacher.grad is None
    assert logits.grad is not None


def test_distillation_of_oneself_is_the_hard_part_alone(logits: Tensor) -> None:
    loss = Distillation(3.0, 0.25)(logits, logits, TARGETS)
    torch.testing.assert_close(loss, 0.75 * cross_entropy()(logits, TARGETS))


@pytest.mark.parametrize("bad", [1.0, -0.1, float("nan")])
def test_cross_entropy_refuses(bad: float) -> None:
    with pytest.raises(ValueError, match="cross_entropy: label_smoothing: expected"):
        cross_entropy(bad)


def test_wrong_types_and_ranges() -> None:
    with pytest.raises(TypeError, match=r"label_smoothing: expected a number in \[0, 1\), got str"):
        cross_entropy("0.1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature: expected a number > 0, got 0"):
        Distillation(temperature=0.0)
    with pytest.raises(ValueError, match=r"weight: expected a number in \[0, 1\], got 1.5"):
        Distillation(weight=1.5)
    with pytest.raises(TypeError, match=r"weight: expected a number in \[0, 1\], got NoneType"):
        Distillation(weight=None)  # type: ignore[arg-type]


def test_distillation_names_shapes(logits: Tensor) -> None:
    with pytest.raises(ValueError, match=r"teacher: expected logits of the student's shape \(5, 4\), got \(5, 3\)"):
        Distillation()(logits, torch.zeros(5, 3), TARGETS)
