"""What float32 leaves open in the ResNet's gradients: decisions that are turned round, and nothing else."""

import copy

import numpy as np
import pytest
import torch
from random_encoders import PRE_LN, random_torch_encoder
from torch import nn
from torch.nn import functional as F

from tests.parity import decisions, encoder_training
from tests.parity.rows import WHOLE, Row
from tests.parity.training import direction


def distance(x, y):
    return direction("", x, y).error


@pytest.fixture
def extractor():
    return random_torch_encoder(PRE_LN).feature_extractor_video


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 3, 88, 88, generator=generator), torch.randn(1, 3, PRE_LN.embed_dim, generator=generator)


def on_the_edge(extractor, video):
    """The extractor with one input of a rectifier of the second stage at zero, as nearly as float32 has it."""
    rectifier, found = extractor.resnet.trunk.layer2[0], []
    hook = rectifier.relu1.register_forward_pre_hook(lambda _, x: found.append(x[0][1, 2, 3, 4].item()))
    with torch.no_grad():
        for _ in range(4):
            extractor(video)
            rectifier.bn1.bias[2] -= found[-1]
    hook.remove()
    return extractor


def test_an_undecided_rectifier_is_what_two_programs_may_differ_by(extractor, inputs):
    """Two that round its input up and down, hardly, and are alike otherwise."""
    usual = decisions.left_open(extractor, *inputs, distance)
    edge = on_the_edge(extractor, inputs[0])
    found = decisions.left_open(edge, *inputs, distance)
    programs = []
    for nudge in (-1e-6, 1e-6):
        one = copy.deepcopy(edge).double()
        with torch.no_grad():
            one.resnet.trunk.layer2[0].bn1.bias[2] += nudge
        programs.append(decisions.gradients(one, *inputs))
    apart = {name: distance(*(one[name] for one in programs)) for name in found}
    before = [name for name in found if ".frontend3D." in name or ".layer1." in name or ".layer2.0.conv1." in name]
    assert all(apart[name] > 10 * max(WHOLE, usual[name]) for name in before)
    assert all(apart[name] <= found[name] + WHOLE for name in apart)
    # Nothing that comes after it is open.
    assert max(far for name, far in found.items() if "layer3" in name or "proj" in name) < 1e-8


@pytest.mark.parametrize("change", ["eps", "padding"])
def test_another_model_is_no_matter_of_rounding(extractor, inputs, change):
    edge = on_the_edge(extractor, inputs[0])
    left_open, other = decisions.left_open(edge, *inputs, distance), copy.deepcopy(edge).double()
    for module in other.modules():
        if change == "eps" and isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.eps = 1e-3
        if change == "padding" and isinstance(module, nn.MaxPool3d):
            module.forward = lambda x: F.max_pool3d(F.pad(x, (0, 2, 0, 2)), (1, 3, 3), (1, 2, 2))
    plain, changed = decisions.gradients(edge.double(), *inputs), decisions.gradients(other, *inputs)
    assert max(distance(changed[name], plain[name]) / (WHOLE + left_open[name]) for name in plain) > 1


def test_what_is_turned_round():
    generator = torch.Generator().manual_seed(0)
    rectifier = nn.PReLU(1).double()
    x = torch.tensor([[-2.0, -1e-7, 0.0, 1e-7, 2.0]] * 50, dtype=torch.float64, requires_grad=True)[..., None]
    given = decisions.turned_rectifier(rectifier, 1e-6, generator)(x.transpose(1, 2))
    (slopes,) = torch.autograd.grad(given.sum(), x)
    slopes = slopes.squeeze(-1).numpy()
    assert set(slopes[:, 0]) == {0.25} and set(slopes[:, 4]) == {1.0}
    assert all(set(column) == {0.25, 1.0} for column in slopes[:, 1:4].T)
    pooling = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
    images = torch.randn(1, 2, 3, 8, 8, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(decisions.turned_pooling(pooling, 0.0, generator)(images), pooling(images))
    turned = decisions.turned_pooling(pooling, 10.0, generator)(images) != pooling(images)
    assert 0.3 < turned.double().mean() < 0.7


def test_only_gradients_of_the_resnet_that_fail_are_given_more():
    asked = []

    def left_open():
        asked.append(1)
        return {"a.resnet.b": 3e-4}

    def settled(what, error):
        return encoder_training.settled(Row(what, error, WHOLE), left_open)

    assert settled("a.resnet.b", 1e-4).tolerance == WHOLE and not settled("a.proj", 2e-4).passed and not asked
    assert settled("a.resnet.b", 3.9e-4).passed and not settled("a.resnet.b", 4.1e-4).passed and len(asked) == 2
    assert not settled("a.resnet.b", np.nan).passed
