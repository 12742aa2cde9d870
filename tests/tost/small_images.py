"""Images for the scripts beside this file, which are trained on in processes of their own."""

import torch

from tost.data import Dataset, MemoryImages


def small_images() -> Dataset:
    """96 training images of 12x12 in three classes that differ in brightness."""
    random = torch.Generator().manual_seed(0)
    targets = torch.arange(120) % 3
    noise = torch.randn(120, 1, 12, 12, generator=random)
    pixels = (128 + 32 * (noise + targets.view(-1, 1, 1, 1))).clamp(0, 255).to(torch.uint8)
    train, test = MemoryImages(pixels[:96], targets[:96]), MemoryImages(pixels[96:], targets[96:])
    return Dataset("small", train, test, 3, torch.tensor([0.5]), torch.tensor([0.125]), 1, False)
