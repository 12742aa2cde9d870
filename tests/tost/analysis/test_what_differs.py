"""What tells runs apart that differ in any setting."""

import dataclasses

import pytest

from tost import Config
from tost.analysis.what_differs import what_differs
from tost.split_lbi import SplitLBIOptions


def lbi(seed: int = 0, **options: float) -> Config:
    return Config(
        optimizer="splitlbi",
        backend="dense",
        recipe="vanilla",  # type: ignore[arg-type]
        seed=seed,
        split_lbi=SplitLBIOptions(**options),  # type: ignore[arg-type]
    )


SGD = Config(backend="dense", recipe="vanilla")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("configs", "title", "variants"),
    [
        ((lbi(),), "resnet20 on mnist5k, splitlbi, kappa 1, nu 10", ("",)),
        ((lbi(0), lbi(1)), "resnet20 on mnist5k, splitlbi, kappa 1, nu 10", ("", "")),
        ((lbi(0, nu=20), lbi(0, nu=100)), "resnet20 on mnist5k, splitlbi, kappa 1", ("nu 20", "nu 100")),
        ((lbi(kappa=2, nu=20), lbi(1)), "resnet20 on mnist5k, splitlbi", ("kappa 2, nu 20", "kappa 1, nu 10")),
        ((lbi(lam_linear=0.5), lbi()), "resnet20 on mnist5k, splitlbi, kappa 1, nu 10", ("lam_linear 0.5", "lam_linear none")),
        ((SGD, lbi(nu=20)), "resnet20 on mnist5k", ("optimizer sgd", "optimizer splitlbi")),
        (
            (SGD, lbi(nu=20), lbi()),
            "resnet20 on mnist5k",
            ("optimizer sgd", "optimizer splitlbi, nu 20", "optimizer splitlbi, nu 10"),
        ),
        ((SGD, dataclasses.replace(SGD, nesterov=True)), "resnet20 on mnist5k, sgd", ("nesterov false", "nesterov true")),
        (
            (Config(), dataclasses.replace(Config(), recipe="vanilla")),
            "resnet20 on mnist5k, sgd",
            ("recipe tost", "recipe vanilla"),
        ),
        (
            (Config(milestones=(0.25, 0.5)), dataclasses.replace(Config(), model="vgg19")),
            "mnist5k, sgd",
            ("model resnet20, milestones 0.25 0.5", "model vgg19, milestones 0.5 0.75"),
        ),
        # what has no effect, or says where files lie, is no difference
        ((SGD, dataclasses.replace(SGD, density=0.5, out="b", data_dir="c", seed=1)), "resnet20 on mnist5k, sgd", ("", "")),
        ((Config(masks="/a/b/m.npz"), Config(masks="/a/n.npz")), "resnet20 on mnist5k, sgd", ("masks m.npz", "masks n.npz")),
    ],
)
def test_names_say_what_differs(configs: tuple[Config, ...], title: str, variants: tuple[str, ...]) -> None:
    assert what_differs(configs) == (title, variants)


def test_the_same_run_twice() -> None:
    with pytest.raises(ValueError, match=r"runs: expected each once, got 2 of seed 3$"):
        what_differs([lbi(3), dataclasses.replace(lbi(3), out="elsewhere")])
    with pytest.raises(ValueError, match="runs: expected each once, got 2 of seed 3 and nu 10"):
        what_differs([lbi(3), lbi(3), lbi(3, nu=20)])
    with pytest.raises(ValueError, match="runs: expected at least one, got none"):
        what_differs([])
