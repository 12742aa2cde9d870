"""How large everything is: on a GPU, and in a dry run on the CPU, where a Triton program takes milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.cases import SPARSITIES, Layer


def _layers(names: str) -> tuple[Layer, ...]:
    return tuple(Layer.parse(name) for name in names.split())


@dataclass(frozen=True)
class Settings:
    """The sizes of a run on a GPU; `tiny()` has those of a dry run.

    Attributes:
        rounds, shortest_ms: of the timing (`benchmarks.timing.interleave`).
        layers: network -> its layers, of which SynFlow's masks are taken; the most important first.
        networks: that the layers are of: name -> (network of tost.models, side of its images).
        masks, sparsities, precisions: of the layers, the most important first.
        csr: layers measured with cuSPARSE, whose input must be unfolded.
        options: backend and algorithm of our kernels -> plan options tried; the fastest is reported.
        copied, cached: bytes of the large copy and of the one that stays in the L2.
        product: side of the matrices of the arithmetic peaks, by precision.
        fused_ops, fused: names of `benchmarks.fused.TAILS`, the most important first, on the outputs of these layers.
        steps: networks of the training steps.
        compiler: torch.compile's arguments; modes: of the training step.
        tests: where pytest finds all that is marked gpu, the most important first: there may be no time for all. To go through
            the other files would take each of its processes as long as half of these tests.
    """

    rounds: int = 11
    shortest_ms: float = 0.5
    batch: int = 256
    layers: dict[str, tuple[Layer, ...]] = field(
        default_factory=lambda: {
            "resnet18": _layers("128@16 256@8 512@4 64@32 128-256@16s2 256-512@8s2 64-128@32s2"),
            "resnet50": _layers("256@14 2048-512@7k1 64-256@56k1"),
        }
    )
    networks: dict[str, tuple[str, int]] = field(
        default_factory=lambda: {"resnet18": ("resnet18", 32), "resnet50": ("resnet50_imagenet", 224)}
    )
    csr: tuple[Layer, ...] = field(default_factory=lambda: _layers("2048-512@7k1 64-256@56k1 128@16"))
    compiled_layers: tuple[Layer, ...] = field(default_factory=lambda: _layers("128@16 256@8"))
    masks: tuple[str, ...] = ("random", "synflow")
    sparsities: tuple[float, ...] = SPARSITIES
    precisions: tuple[str, ...] = ("tf32", "bf16", "fp32")
    options: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "cuda gather": ("algo=gather,rows=16", "algo=gather,rows=32"),
            "cuda direct": ("algo=direct,rows=1", "algo=direct,rows=2", "algo=direct,rows=4"),
            "triton tiles": ("algo=tiles,rows=64", "algo=tiles,rows=32", "algo=tiles,rows=128"),
            "triton blocks": ("algo=blocks,rows=64,block=32", "algo=blocks,rows=64,block=16"),
            "triton direct": ("algo=direct",),
        }
    )
    copied: int = 1 << 30
    cached: int = 8 << 20
    product: dict[str, int] = field(default_factory=lambda: {"fp32": 4096, "tf32": 8192, "bf16": 8192})
    fused_ops: tuple[str, ...] = ("pswish", "bn-ghost-skip-pswish", "bn-skip-relu", "bn-relu")
    fused: tuple[Layer, ...] = field(default_factory=lambda: _layers("64@32 128@16 256@8 512@4"))
    steps: tuple[str, ...] = ("resnet18", "resnet32")
    step_batch: int = 128
    step_sparsity: float = 0.95
    image: tuple[int, ...] = (3, 32, 32)
    compiler: dict[str, str] = field(default_factory=dict)
    modes: tuple[str, ...] = ("default", "reduce-overhead")
    tests: tuple[str, ...] = (
        "tests/cuda_host",
        "tests/tost_kernels/test_on_gpu.py",
        "tests/tost_kernels/test_cuda_timer.py",
        "tests/tost_kernels/nn/test_sparse_module.py",
        "tests/tost/test_graphed.py",
        "tests/tost/masks/test_prune.py",
        "tests/tost/data/test_transfer.py",
    )


def tiny() -> Settings:
    """A dry run: every line, as little as possible of each."""
    return Settings(
        rounds=1,
        shortest_ms=0.0,
        batch=2,
        layers={"resnet18": _layers("16-32@2s2")},
        networks={"resnet18": ("resnet20", 8)},
        csr=_layers("16-32@2s2"),
        compiled_layers=_layers("16-32@2s2"),
        sparsities=(0.95,),
        precisions=("bf16", "fp32"),
        options={
            "cuda gather": ("algo=gather,rows=16",),
            "cuda direct": ("algo=direct,rows=1", "algo=direct,rows=2"),
            "triton tiles": ("algo=tiles,rows=16",),
            "triton blocks": ("algo=blocks,rows=16,block=16",),
            "triton direct": ("algo=direct",),
        },
        copied=1 << 16,
        cached=1 << 12,
        product={"fp32": 16, "tf32": 16, "bf16": 16},
        fused_ops=("pswish", "bn-ghost-skip-pswish"),
        fused=_layers("4@2"),
        steps=("lenet5",),
        step_batch=2,
        image=(3, 16, 16),
        compiler={"backend": "aot_eager"},  # Inductor takes half a minute a network
        modes=("default",),
        tests=("tests/benchmarks/test_timing.py",),
    )
