"""Each method against a table computed by hand, and the iterative ones against a direct implementation."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import tost.masks.scores as scores
from tost.masks import methods, prune
from tost.masks.layers import prunable_layers
from tost.masks.probe import Probe, linearized, training


def probe_of(net, prepare=None, **arguments):
    return Probe(net, prunable_layers(net), prepare, torch.Generator().manual_seed(0), **arguments)


def sum_of_outputs(outputs, targets):
    return outputs.sum()


def kept(masks):
    return [masks[name].int().tolist() for name in masks]


# two_layers: W1 = [[1, -2], [3, 0.5]], relu, W2 = [[2, -1]]


def test_magnitude(two_layers):
    first, second = scores.magnitude(probe_of(two_layers))
    assert first.tolist() == [[1, 2], [3, 0.5]]
    assert second.tolist() == [[2, 1]]
    assert kept(prune(two_layers, "magnitude", 0.5)) == [[[0, 1], [1, 0]], [[1, 0]]]
    # 1 and 1 compete for the last place: the first wins
    assert kept(prune(two_layers, "magnitude", 4 / 6)) == [[[1, 1], [1, 0]], [[1, 0]]]


def test_snip(two_layers):
    # x = (1, 2): before relu (-3, 4), output -4; dL/dW2 = (0, 4), dL/dW1 = [[0, 0], [-1, -2]]
    data = [(torch.tensor([[1.0, 2.0]]), torch.zeros(1))]
    first, second = scores.connection_sensitivity(probe_of(two_layers, training, data=data, loss=sum_of_outputs))
    assert first.tolist() == [[0, 0], [3, 1]]
    assert second.tolist() == [[0, 4]]
    assert kept(prune(two_layers, "snip", 0.5, data=data, loss=sum_of_outputs)) == [[[0, 0], [1, 1]], [[0, 1]]]


def test_snip_averages_signed_gradients_over_batches(two_layers):
    # x and -x / 2 in batches of their own: hidden (0, 4) and (1.5, 0)
    data = [(torch.tensor([[1.0, 2.0]]), torch.zeros(1)), (torch.tensor([[-0.5, -1.0]]), torch.zeros(1))]
    first, second = scores.connection_sensitivity(probe_of(two_layers, training, data=data, loss=sum_of_outputs, batches=2))
    assert first.tolist() == [[1 * 2 * 0.5 / 2, 2 * 2 * 1 / 2], [3 * 1 / 2, 0.5 * 2 / 2]]
    assert second.tolist() == [[2 * 1.5 / 2, 1 * 4 / 2]]
    mean = [(torch.tensor([[1.0, 2.0], [-0.5, -1.0]]), torch.zeros(2))]
    variant = replace(methods()["snip"], batches=2)
    assert prune(two_layers, variant, 0.5, data=data, loss=sum_of_outputs) == prune(
        two_layers, "snip", 0.5, data=mean, loss=sum_of_outputs
    )


def test_synflow(two_layers):
    # |W1| = [[1, 2], [3, .5]], |W2| = [2, 1], ones in: hidden (3, 3.5), R = 9.5
    first, second = scores.synaptic_flow(probe_of(two_layers, linearized, input_shape=(2,)))
    assert first.dtype is torch.float64
    assert first.tolist() == [[2, 4], [3, 0.5]]
    assert second.tolist() == [[6, 3.5]]
    one_shot = replace(methods()["synflow"], steps=1)
    assert kept(prune(two_layers, one_shot, 0.5, input_shape=(2,))) == [[[0, 1], [0, 0]], [[1, 1]]]
    # Step by step: 0.5 goes, then 2, hidden (2, 3); of 3 (W1) and 3 (W2) the later goes, and its input has no way on
    assert kept(prune(two_layers, "synflow", 0.5, input_shape=(2,))) == [[[0, 1], [1, 0]], [[1, 0]]]
    assert kept(prune(two_layers, "synflow", 2 / 6, input_shape=(2,))) == [[[0, 1], [0, 0]], [[1, 0]]]


def test_synflow_takes_the_absolute_value_of_biases_and_running_means():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0), nn.Flatten(), nn.Linear(1, 1))
    with torch.no_grad():
        net[0].weight.fill_(-2.0)
        net[0].bias.fill_(-3.0)
        net[1].running_mean.fill_(-1.0)
        net[1].weight.fill_(-5.0)
        net[1].bias.fill_(-7.0)
        net[3].weight.fill_(-11.0)
        net[3].bias.fill_(-13.0)
    first, second = scores.synaptic_flow(probe_of(net, linearized, input_shape=(1, 1, 1)))
    assert first.item() == 2 * 5 * 11
    assert second.item() == 11 * ((2 + 3 - 1) * 5 + 7)


def test_synflow_does_not_underflow_where_float32_does():
    net = nn.Sequential(*[nn.Linear(3, 3, bias=False) for _ in range(40)])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1e-3)
    assert (torch.stack(list(scores.synaptic_flow(probe_of(net, linearized, input_shape=(3,))))) > 0).all()
    masks = prune(net, "synflow", 1 / 9, input_shape=(3,))
    assert masks.empty_layers() == ()
    assert masks.kept == 40  # one path


def test_synflow_conserves_the_flow(resnet):
    # Without biases and normalisation all layers carry the same flow.
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5, bias=False))
    first, second = scores.synaptic_flow(probe_of(net, linearized, input_shape=(3, 8, 8)))
    assert first.sum().item() == pytest.approx(second.sum().item(), rel=1e-12)


def test_grasp():
    # L = (out / 200)^2 / 2, out = w.x = 2: H g is proportional to x with a factor > 0, so the score to w * x
    net = nn.Sequential(nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0]]))
    data = [(torch.ones(1, 3).double(), torch.zeros(1))]

    def half_square(outputs, targets):
        return outputs.square().sum() / 2

    (score,) = scores.gradient_flow(probe_of(net, training, data=data, loss=half_square))
    assert score.tolist()[0] == pytest.approx([w * 2 * 3 / 200**4 for w in (1, -2, 3)])
    assert kept(prune(net, "grasp", 2 / 3, data=data, loss=half_square)) == [[[1, 0, 1]]]


def test_grasp_averages_over_batches():
    # quadratic loss: the gradient of the mean, and the mean Hessian, are those of one batch of both samples
    net = nn.Sequential(nn.Linear(3, 1, bias=False)).double()
    x = torch.tensor([[1.0, 2.0, -1.0], [-3.0, 1.0, 0.5]]).double()

    def mean_square(outputs, targets):
        return outputs.square().mean()

    data = [(x[:1], None), (x[1:], None)]
    (score,) = scores.gradient_flow(probe_of(net, training, data=data, loss=mean_square, batches=2))
    (together,) = scores.gradient_flow(probe_of(net, training, data=[(x, None)], loss=mean_square))
    (first,) = scores.gradient_flow(probe_of(net, training, data=data, loss=mean_square))
    torch.testing.assert_close(score, together, rtol=1e-9, atol=0)
    assert not torch.allclose(score, first, rtol=0.1, atol=0)


@pytest.mark.parametrize("name", ["random", "magnitude", "synflow"])
def test_several_batches_need_a_score_that_reads_them(name):
    with pytest.raises(ValueError, match="batches: expected 1 for a method whose score reads no data, got 2"):
        replace(methods()[name], batches=2)


def test_squared_gradient(two_layers):
    # as for snip above: dL/dW2 = (0, 4), dL/dW1 = [[0, 0], [-1, -2]]; of the second batch (1.5, 0), [[-1, -2], [0, 0]]
    data = [(torch.tensor([[1.0, 2.0]]), torch.zeros(1)), (torch.tensor([[-0.5, -1.0]]), torch.zeros(1))]
    first, second = scores.squared_gradient(probe_of(two_layers, training, data=data, loss=sum_of_outputs))
    assert first.tolist() == [[0, 0], [1, 4]]
    assert second.tolist() == [[0, 16]]
    # averaged first, then squared
    first, second = scores.squared_gradient(probe_of(two_layers, training, data=data, loss=sum_of_outputs, batches=2))
    assert first.tolist() == [[0.25, 1], [0.25, 1]]
    assert second.tolist() == [[0.75**2, 4]]


def direct(net, data, counts, recover, squared):
    """Iterative SNIP, GRASP-It and FORCE written out, with a sort, on the masked weights."""
    layers = [m for m in net if isinstance(m, (nn.Conv2d, nn.Linear))]
    original = [layer.weight.detach().clone() for layer in layers]
    keep = [torch.ones_like(w, dtype=torch.bool) for w in original]
    returned = 0
    for step, count in enumerate(counts):
        for layer, weight, mask in zip(layers, original, keep, strict=True):
            layer.weight.data = weight * mask
        inputs, targets = data[step % len(data)]
        loss = nn.functional.cross_entropy(net(inputs), targets)
        gradients = torch.autograd.grad(loss, [layer.weight for layer in layers])
        flat = torch.cat([(g if squared else w * g).flatten() for w, g in zip(original, gradients, strict=True)]).square()
        before = torch.cat([mask.flatten() for mask in keep])
        if not recover:
            flat[~before] = -1.0
        now = torch.zeros_like(before)
        now[flat.sort(descending=True, stable=True).indices[:count]] = True
        returned += int((now & ~before).sum())
        keep = [m.reshape(w.shape) for m, w in zip(now.split([w.numel() for w in original]), original, strict=True)]
    return keep, returned


@pytest.mark.filterwarnings("ignore:grasp_it .* leaves no weight:UserWarning")
@pytest.mark.parametrize("name", ["iter_snip", "grasp_it", "force"])
def test_iterative_methods(convnet, batches, name):
    method = replace(methods()[name], steps=5)
    masks = prune(convnet, method, 0.05, data=batches)
    counts = [round(1656 * 0.05 ** (t / 5)) for t in range(1, 6)]
    expected, returned = direct(convnet, batches, counts, method.recover, squared=name == "grasp_it")
    assert (returned > 0) == method.recover  # else the test would not tell the two apart
    assert kept(masks) == [mask.int().tolist() for mask in expected]


def test_random_and_erk_counts(convnet):
    # Shapes (6, 3, 3, 3), (9, 2, 1, 3), (10, 144): 162, 54, 1440 weights, sums 15, 15, 154; 166 of 1656 are kept.
    # random: 16.24, 5.41, 144.35; erk: 13.53, 13.53, 138.93
    assert [layer.kept for layer in prune(convnet, "random", 0.1).per_layer()] == [16, 6, 144]
    assert [layer.kept for layer in prune(convnet, "erk", 0.1).per_layer()] == [14, 13, 139]


def test_random_draws_every_weight_equally_often():
    net = nn.Sequential(nn.Linear(4, 5, bias=False))
    drawn = sum(prune(net, "random", 0.5, seed=seed)["0"].float() for seed in range(400))
    assert ((drawn - 200).abs() < 50).all()  # five standard deviations


def test_scores_of_half_precision_networks_are_single(convnet, batches):
    # bfloat16 has 8 bits: 1,440 products would fall on a few hundred values, and ties would decide.
    probe = probe_of(convnet.bfloat16(), training, data=batches)
    *_, fc = scores.connection_sensitivity(probe)
    assert fc.dtype is torch.float32
    assert (fc.bfloat16().float() != fc).any()


def test_batch_norm_uses_the_statistics_of_the_batch():
    # In eval mode the running mean 0 and variance 1 would leave a gradient; centred batches of one value give none.
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.Flatten())
    data = [(torch.tensor([1.0, -1.0, 2.0]).reshape(3, 1, 1, 1), torch.zeros(3))]
    (score,) = scores.connection_sensitivity(probe_of(net.eval(), training, data=data, loss=sum_of_outputs))
    assert score.item() == pytest.approx(0, abs=1e-6)
    assert net[1].running_mean.item() == 0
