"""`own_loop.py` in several processes: torchrun --nproc-per-node 2 examples/own_loop_ddp.py (or python, for one)."""

import math
from itertools import chain, count

import torch

import tost
import tost_kernels as tk
from tost import distributed, ghosts


def main(steps: int = 300, batch_size: int = 32) -> float:
    with distributed.processes(device="cpu") as me:
        batches = tost.data.TrainBatches(tost.data.load("mnist5k"), batch_size, seed=me.rank)  # each process draws its own
        model = tost.models.build("resnet20", num_classes=10, in_channels=1)
        masks = distributed.broadcast_masks(tost.prune(model, "erk", density=0.05) if me.is_main else None)
        recipe = tost.Recipe(rescale_init=False, fade_end=0.5)
        net = tost.add_ghosts(tk.sparsify(model, masks), recipe)
        ddp = distributed.wrap(net)  # rank 0's weights everywhere
        optimizer = torch.optim.SGD(tk.param_groups(net, weight_decay=2e-4), lr=0.1, momentum=0.9)
        start, end = ghosts.fade_window(recipe, steps)
        for step, (images, labels) in zip(range(steps), chain.from_iterable(map(batches.epoch, count())), strict=False):
            ghosts.set_strength(net, *ghosts.strength_at(recipe, step, start, end))
            if step == end:  # dead ghosts get no gradients, and DDP would wait for them
                for parameter in ghosts.ghost_parameters(net):
                    parameter.requires_grad_(False)
                ddp = distributed.wrap(ddp)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(ddp(tk.to_batch_last(images)), labels)
            loss.backward()
            mean_loss, _ = distributed.agree(loss.item())
            if math.isfinite(mean_loss):  # all processes update, or none
                optimizer.step()
        return mean_loss


if __name__ == "__main__":
    print(f"loss {main():.3f}")
