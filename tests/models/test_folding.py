"""Folded networks: the same answers without a batch norm, and no guess that is not tried."""

import pytest
import torch
from torch import nn

from dfd.models.backbones import fold_batch_norms
from dfd.models.networks import EncoderClassifier, RealFakeClassifier


def used(model):
    """A network whose batch norms have seen something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            generator = torch.Generator().manual_seed(module.num_features)
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.normal_(module.weight, 1, 0.2, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    "model",
    [
        RealFakeClassifier("test_resnet.r160_in1k", representation="highpass"),
        RealFakeClassifier("tf_efficientnet_lite0"),
        EncoderClassifier("test_efficientnet.r160_in1k"),
    ],
)
def test_a_folded_network_answers_as_before_and_leaves_the_first_alone(model):
    model, images = used(model), torch.rand(3, 3, 48, 48)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quick = fold_batch_norms(model, 48)
    norms = [sum(isinstance(module, nn.BatchNorm2d) for module in one.modules()) for one in (model, quick)]
    assert norms[0] > 5 and norms[1] <= 1  # the small ResNet has one behind a whole stem
    with torch.no_grad():
        expected = model(images)
        assert expected.std() > 0
        torch.testing.assert_close(quick(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert quick is not model


def test_bfloat16_around_it_does_not_hide_that_a_folded_network_is_the_same():
    model = used(RealFakeClassifier("test_resnet.r160_in1k"))
    with torch.autocast("cpu", torch.bfloat16):
        assert fold_batch_norms(model, 48) is not model


class Strange(nn.Module):
    """A norm that comes before the convolution which is registered before it."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, images):
        return self.convolution(self.norm(images).relu()).mean((1, 2, 3))


def test_a_network_in_another_order_than_it_looks_is_left_as_it_is():
    model = used(Strange())
    assert fold_batch_norms(model, 48) is model
