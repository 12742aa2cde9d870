"""Weights of odd shapes, and masks of every kind for them, to make indices of."""

import numpy as np
import torch

# name -> shape of the weight, groups of the convolution
SHAPES = {
    "1x1": ((40, 33, 1, 1), 1),
    "3x3": ((20, 24, 3, 3), 1),
    "5x5": ((17, 3, 5, 5), 1),
    "2x3": ((33, 5, 2, 3), 1),
    "linear": ((50, 70), 1),
    "one row": ((1, 1), 1),
    "groups": ((36, 5, 3, 3), 3),
    "depthwise": ((37, 1, 3, 3), 37),
    "depthwise, two filters a channel": ((40, 1, 3, 1), 20),
}
MASKS = {
    "empty": lambda size: torch.zeros(size, dtype=torch.bool),
    "full": lambda size: torch.ones(size, dtype=torch.bool),
    "random": lambda size: torch.rand(size) < 0.2,
    "empty rows": lambda size: (torch.rand(size) < 0.3) & (torch.rand(size[0], *[1] * (len(size) - 1)) < 0.5),
    "one weight": lambda size: torch.arange(int(np.prod(size))).view(size) == int(np.prod(size)) // 2,
}
