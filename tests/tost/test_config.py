"""Config: checks name the field, equal meaning gives equal hashes, YAML says the same."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tost
from tost import Config, Recipe
from tost.split_lbi import SplitLBIOptions


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("density", 0),
        ("density", 1.5),
        ("density", float("nan")),
        ("density", "0.1"),
        ("lr", 0),
        ("lr", True),
        ("momentum", 1),
        ("weight_decay", -1),
        ("gamma", 0),
        ("milestones", (0.5, 0.5)),
        ("milestones", (0, 0.5)),
        ("milestones", 0.5),
        ("epochs", 0),
        ("epochs", 1.5),
        ("steps", 0),
        ("method_steps", 0),
        ("batch_size", 0),
        ("eval_every", 0),
        ("warmup_steps", -1),
        ("seed", -1),
        ("nesterov", 1),
        ("tune", "yes"),
        ("cuda_graph", 1),
        ("include", 3),
        ("model", 3),
        ("data_dir", 3),
        ("backend", "sparce"),
        ("optimizer", "lion"),
        ("schedule", "poly"),
        ("amp", "fp8"),
        ("betas", (0.9,)),
        ("betas", (0.9, 1.0)),
        ("clip_norm", 0),
        ("ema", 1),
        ("validation", 1),
        ("cutout", -1),
        ("accumulate", 3),
        ("drop_every", 0),
        ("max_skipped", -1),
        ("teacher", 3),
        ("teacher", None),
        ("recipe", "tots"),
        ("recipe", 3),
        ("split_lbi", 3),
        ("split_lbi", {"mu": 3}),
        ("split_lbi.kappa", {"kappa": 0}),
        ("split_lbi.lam_linear", {"lam_linear": -1}),
        ("split_lbi.prox", {"prox": "ridge"}),
        ("split_lbi.sqrt_d", {"sqrt_d": 1}),
    ],
)
def test_a_wrong_value_names_its_field(field: str, value: Any) -> None:
    distils = {"recipe": Recipe(distillation=0.5)} if field == "teacher" else {}
    with pytest.raises((ValueError, TypeError), match=rf"^{field}: "):
        Config(**{field.partition(".")[0]: value, **distils})


def test_errors_across_fields() -> None:
    with pytest.raises(ValueError, match=r"^momentum: expected above 0 with nesterov"):
        Config(nesterov=True, momentum=0)
    with pytest.raises(ValueError, match=r"^recipe.fade_start: expected at most the first drop"):
        Config(recipe=Recipe(fade_start=0.6))
    with pytest.raises(ValueError, match=r"^backend: expected 'dense' with optimizer 'splitlbi', .*, got 'sparse'"):
        Config(optimizer="splitlbi", recipe=Recipe.vanilla())
    with pytest.raises(ValueError, match=r"^recipe: expected no ghosts with optimizer 'splitlbi'"):
        Config(optimizer="splitlbi", backend="dense")
    Config(recipe=Recipe(fade_start=0.6, fade_end=0.7))


@pytest.mark.parametrize(("field", "value"), [("model", "resnet2"), ("dataset", "mnst"), ("method", "ekr")])
def test_names_are_looked_up(field: str, value: str) -> None:
    config = Config(**{field: value})
    with pytest.raises(ValueError, match=rf"^{field}: unknown name '{value}'; did you mean"):
        config.check_names()


def test_dense_needs_no_method() -> None:
    Config(backend="dense", method="none").check_names()


@pytest.mark.parametrize("rest", [{}, {"backend": "masked-dense"}])
def test_what_chooses_masks_does_nothing_beside_a_file_of_masks(tmp_path: Path, rest: dict[str, Any]) -> None:
    file = tmp_path / "masks.safetensors"
    file.write_text("masks")
    bare = Config(masks=str(file), **rest)
    full = dataclasses.replace(
        bare, method="foo", method_steps=5, density=0.3, include=("fc1",), exclude=("fc2",), keep_alive=True
    )
    full.check_names()
    assert full != bare
    assert full.in_effect == bare == bare.in_effect
    assert full.hash == bare.hash
    assert dataclasses.replace(bare, mask_check="shuffled").hash != bare.hash
    assert Config(masks=str(tmp_path), **rest).hash == bare.hash  # a run folder


def test_what_chooses_masks_does_nothing_in_a_dense_run() -> None:
    dense = Config(backend="dense")
    full = Config(
        backend="dense", method="foo", method_steps=5, density=0.3, include=("fc1",), keep_alive=True, mask_check="shuffled",
        masks="nosuch.npz", tune=True,
    )  # fmt: skip
    full.check_names()
    assert full.in_effect == dense
    assert full.hash == dense.hash
    assert Config(backend="dense", mask_check="reinitialised").hash != dense.hash  # other weights
    sparse = Config(method_steps=5, density=0.3, include=("fc1",), keep_alive=True, mask_check="shuffled", tune=True)
    assert sparse.in_effect == sparse


@pytest.mark.parametrize("place", ["nosuch.npz", "."])
def test_masks_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    for look in (Config.check_names, lambda config: config.hash):
        with pytest.raises(FileNotFoundError, match=r"^masks: no such file: (nosuch.npz|masks.safetensors)$"):
            look(Config(masks=place))


def test_steps_are_for_methods_that_take_several() -> None:
    for steps in (1, 3):
        with pytest.raises(ValueError, match=rf"^method_steps: expected none for 'snip', .* got {steps} \(.*iter_snip, force\)"):
            Config(method="snip", method_steps=steps).check_names()
        Config(method="force", method_steps=steps).check_names()


def test_the_file_of_a_network_is_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(model="sub/net.py:small")
    assert config.model == f"{tmp_path}/sub/net.py:small"
    assert config.model_name == "net.py:small"
    assert Config.from_dict(config.as_dict()) == config
    assert [Config(model=name).model for name in ("resnet20", "pkg.nets:small")] == ["resnet20", "pkg.nets:small"]
    assert Config(model="pkg.nets:small").model_name == "pkg.nets:small"


def test_unknown_keys_are_rejected() -> None:
    with pytest.raises(ValueError, match="config: unknown name 'densty'; did you mean density"):
        Config.from_dict({"densty": 0.1})
    with pytest.raises(ValueError, match="ghost_skp"):
        Config.from_dict({"recipe": {"ghost_skp": True}})


def test_dict_and_yaml_round_trip(tmp_path: Path) -> None:
    config = Config(density=0.02, recipe=Recipe(ghost_skip=False), include=("layer*",), milestones=(0.4,), steps=7)
    assert Config.from_dict(config.as_dict()) == config
    (tmp_path / "c.yaml").write_text(
        "density: 2e-2\nrecipe: {ghost_skip: false}\ninclude: [layer*]\nmilestones: [0.4]\nsteps: 7\n"
    )
    assert Config.from_yaml(tmp_path / "c.yaml") == config
    (tmp_path / "v.yaml").write_text("recipe: vanilla\n")
    assert Config.from_yaml(tmp_path / "v.yaml").recipe == Recipe.vanilla()


def test_a_lone_pattern_is_a_list_of_one(tmp_path: Path) -> None:
    config = Config.from_dict({"include": "conv*", "exclude": "fc"})
    assert (config.include, config.exclude) == (("conv*",), ("fc",))
    assert config.hash == Config(include=("conv*",), exclude=("fc",)).hash
    (tmp_path / "c.yaml").write_text("include: conv*\n")
    assert Config.from_yaml(tmp_path / "c.yaml").include == ("conv*",)


def test_hash_is_about_the_result(tmp_path: Path) -> None:
    base = Config()
    (tmp_path / "m").write_text("masks")
    assert len(base.hash) == 12
    assert dataclasses.replace(base, out="elsewhere").hash == base.hash
    assert Config(density=1).hash == Config(density=1.0).hash
    assert Config(milestones=[0.5, 0.75]).hash == base.hash  # type: ignore[arg-type]
    changed: dict[str, Any] = {
        "model": "resnet32",
        "dataset": "cifar10",
        "data_dir": "x",
        "method": "snip",
        "method_steps": 3,
        "density": 0.1,
        "include": ("a",),
        "exclude": ("a",),
        "recipe": Recipe.vanilla(),
        "epochs": 3,
        "steps": 3,
        "batch_size": 3,
        "lr": 0.3,
        "momentum": 0.3,
        "nesterov": True,
        "weight_decay": 0.3,
        "milestones": (0.3,),
        "gamma": 0.3,
        "warmup_steps": 3,
        "validation": 0.3,
        "cutout": 3,
        "teacher": "x",
        "accumulate": 2,
        "optimizer": "adam",
        "betas": (0.3, 0.3),
        "schedule": "cosine",
        "drop_every": 0.3,
        "clip_norm": 0.3,
        "amp": "bf16",
        "ema": 0.3,
        "max_skipped": 3,
        "eval_every": 3,
        "seed": 3,
        "backend": "dense",
        "tune": True,
        "keep_alive": True,
        "masks": str(tmp_path / "m"),
        "mask_check": "shuffled",
    }
    same = {"out", "cuda_graph"}  # a recorded step is the step
    of_searches = {"split_lbi", "weights", "bn_l1", "soft_filter"}
    assert {f.name for f in dataclasses.fields(Config)} == {*changed, *same, *of_searches}
    assert {dataclasses.replace(base, cuda_graph=value).hash for value in (None, False, True)} == {base.hash}
    hashes = {dataclasses.replace(base, **{name: value}).hash for name, value in changed.items()}
    assert len(hashes | {base.hash}) == len(changed) + 1
    found = Config(optimizer="splitlbi", backend="dense", recipe=Recipe.vanilla())
    assert found.hash == dataclasses.replace(found, split_lbi=SplitLBIOptions()).hash
    assert found.hash != dataclasses.replace(found, split_lbi=SplitLBIOptions(nu=20)).hash
    assert base.hash == dataclasses.replace(base, split_lbi=SplitLBIOptions(nu=20)).hash  # without effect


def test_hash_of_what_searches_are_configured_by(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("weights")
    dense = Config(backend="dense", recipe=Recipe.vanilla())
    soft = dataclasses.replace(dense, soft_filter=True)
    changed = [
        dataclasses.replace(dense, bn_l1=1e-4),
        soft,
        dataclasses.replace(soft, density=0.3),  # there they have an effect
        dataclasses.replace(soft, exclude=("fc",)),
        dataclasses.replace(dense, weights=str(tmp_path)),
    ]
    assert len({one.hash for one in [dense, *changed]}) == 6
    assert changed[-1].hash == dataclasses.replace(dense, weights=str(tmp_path / "model.safetensors")).hash
    assert dense.hash == dataclasses.replace(dense, density=0.3, exclude=("fc",)).hash
    (tmp_path / "model.safetensors").write_text("others")
    assert changed[-1].hash != dataclasses.replace(dense, weights=str(tmp_path)).hash
    with pytest.raises(ValueError, match="masks, weights, model: expected the files that this run was named after"):
        changed[-1].check_files()
    with pytest.raises(FileNotFoundError, match="weights: no such file: nosuch"):
        Config(weights="nosuch", recipe=Recipe.vanilla()).check_names()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bn_l1": 1e-4}, "backend: expected 'dense' with bn_l1, got 'sparse'"),
        ({"soft_filter": True, "backend": "dense", "recipe": "tost"}, "recipe: expected no ghosts with soft_filter"),
        ({"soft_filter": True}, "backend: expected 'dense' with soft_filter, got 'sparse'"),
        ({"soft_filter": 1}, "soft_filter: expected true or false, got 1"),
        ({"bn_l1": -1}, "bn_l1: expected a number"),
        ({"weights": "w", "mask_check": "reinitialised"}, "mask_check: expected no weights drawn anew beside weights"),
        ({"weights": "w", "recipe": "tost"}, "recipe: expected no rescale_init with weights"),
    ],
)
def test_fields_that_do_not_go_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**{"recipe": "vanilla", **fields})


def test_hash_is_about_the_content_of_files(tmp_path: Path) -> None:
    def hash_of(masks: str, model: str) -> str:
        (tmp_path / "masks").write_text(masks)
        (tmp_path / "net.py").write_text(model)
        return Config(masks=str(tmp_path / "masks"), model=f"{tmp_path / 'net.py'}:f").hash

    first = hash_of("a", "b")
    assert len({first, hash_of("A", "b"), hash_of("a", "B")}) == 3
    assert hash_of("a", "b") == first
    (tmp_path / "masks").rename(tmp_path / "moved")
    assert Config(masks=str(tmp_path / "moved"), model=f"{tmp_path / 'net.py'}:f").hash == first
    assert Config(masks=str(tmp_path / "moved"), model=f"{tmp_path / 'net.py'}:g").hash != first


def test_hash_follows_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Config().hash
    monkeypatch.setattr(tost, "__version__", "9.9.9")
    assert Config().hash != before


def test_the_hash_of_known_configurations_stays() -> None:
    """Finished runs, some of them of days, are found by it: what is added to a configuration must leave it alone."""
    vanilla = Config(model="resnet20", dataset="cifar10", method="synflow", density=0.02, recipe=Recipe.vanilla(), seed=4)
    ghosts = Recipe(ghost_skip=True, ghost_swish=True, label_smoothing=0.1, fade_end=0.3, rescale_iterations=180)
    everything = Config(model="resnet32", method="force", method_steps=60, exclude=("fc",), recipe=ghosts, epochs=182, ema=0.999)
    assert (vanilla.hash, everything.hash) == ("5a174a0a9450", "21b72b92e43d")


def test_hash_is_the_same_in_every_process() -> None:
    code = "import tost; print(tost.Config(density=0.1, seed=4).hash)"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for salt in ("1", "2")
    }
    assert seen == {Config(density=0.1, seed=4).hash}


def test_steps_override_epochs() -> None:
    assert Config(epochs=3).total_steps(10) == 30
    assert Config(epochs=3, steps=4).total_steps(10) == 4
