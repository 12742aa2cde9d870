"""A sparse network with ghosts in a plain PyTorch loop: prune, sparsify, add_ghosts, fade, finalize, densify, save.

python examples/own_loop.py [resnet20.safetensors]
"""

import sys
from itertools import chain, count

import torch
from safetensors.torch import save_file

import tost
import tost_kernels as tk
from tost.ghosts import fade_window, set_strength, strength_at


def main(path: str = "resnet20.safetensors", steps: int = 620, batch_size: int = 64) -> float:
    """Trains, writes the plain dense network to `path` and returns its test accuracy."""
    data = tost.data.load("mnist5k")
    batches = tost.data.TrainBatches(data, batch_size, seed=0)
    torch.manual_seed(0)
    model = tost.models.build("resnet20", num_classes=data.num_classes, in_channels=1)

    masks = tost.prune(model, "erk", density=0.05, input_shape=data.input_shape)
    recipe = tost.Recipe(rescale_init=False, fade_end=0.5)
    net = tost.add_ghosts(tk.sparsify(model, masks), recipe)
    optimizer = torch.optim.SGD(tk.param_groups(net, weight_decay=2e-4), lr=0.1, momentum=0.9)
    window = fade_window(recipe, steps)
    for step, (images, labels) in zip(range(steps), chain.from_iterable(map(batches.epoch, count())), strict=False):
        set_strength(net, *strength_at(recipe, step, *window))
        loss = torch.nn.functional.cross_entropy(net(tk.to_batch_last(images)), labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    plain = tk.densify(tost.finalize(net)).eval()

    save_file(plain.state_dict(), path)
    with torch.no_grad():
        hits = [plain(images).argmax(1) == labels for images, labels in tost.data.eval_batches(data, 500)]
    return torch.cat(hits).float().mean().item()


if __name__ == "__main__":
    print(f"test accuracy {main(*sys.argv[1:2]):.1%}")
