"""The adversary of stage 1: every loss reaches the network it is for, and no other."""

import pytest
import torch
from networks import SEEN, UNSEEN, photo_crops
from sklearn.metrics import roc_auc_score
from torch import nn

from dfd import config
from dfd.degrade.operators import jpeg
from dfd.models.networks import RealFakeClassifier
from dfd.train.stage1 import Launderer, equalised


def small(**changes):
    small = {"launderer_width": 4, "launderer_bound": 0.05, "pretrained": False}
    torch.manual_seed(0)
    return Launderer(config.Stage1(**{**small, **changes}))


@pytest.fixture
def adversary():
    return small()


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return torch.rand(2, 3, 48, 48), torch.rand(2, 3, 48, 48)


def reached(module):
    return any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


@pytest.mark.parametrize("loss", ["adversarial", "evasion", "perceptual"])
def test_each_loss_reaches_the_launderer(loss, adversary, batches):
    classifier = RealFakeClassifier("test_resnet.r160_in1k")
    if loss == "perceptual":  # at no change at all the distance is at its minimum, where the gradient is zero
        with torch.no_grad():
            adversary.generator.head.bias.fill_(0.1)
    adversary.laundering_losses(batches[1], classifier)[loss].backward()
    assert reached(adversary.generator)
    assert not reached(adversary.perceptual)
    assert reached(adversary.discriminator) == (loss == "adversarial")  # Trainer.step leaves these where they are
    assert reached(classifier) == (loss == "evasion")


def test_the_discriminators_loss_reaches_the_discriminator_alone(adversary, batches):
    photos, fakes = batches
    adversary.discriminator_loss(photos, adversary(fakes)).backward()
    assert reached(adversary.discriminator) and not reached(adversary.generator)


def test_the_change_is_bounded_and_starts_small(batches):
    adversary, fakes = small(equalise=False), batches[1]
    assert (adversary(fakes) - fakes).abs().max() < 0.01
    with torch.no_grad():
        adversary.generator.head.bias.fill_(100.0)
    change = (adversary(fakes) - fakes).detach()
    assert adversary(fakes).max() <= 1 and change.max() == pytest.approx(0.05, abs=1e-6)


def test_all_networks_see_laundered_fakes_behind_the_codec(adversary, batches):
    photos, fakes = batches
    adversary.generator.head.bias.data.fill_(0.4)
    with torch.no_grad():
        expected = jpeg((fakes + adversary.generator(fakes)).clamp(0, 1), adversary.quality)
    seen, classifier = [], RealFakeClassifier("test_resnet.r160_in1k")
    for network in (adversary.discriminator, classifier, adversary.perceptual):
        network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    adversary.laundering_losses(fakes, classifier)
    adversary.discriminator_loss(photos, adversary(fakes))
    both = seen[3].split(len(photos))  # a discriminator's step looks at photos and laundered fakes at once
    assert len(seen) == 4 and torch.equal(both[0], photos)
    for images in (*seen[:3], both[1]):
        assert torch.allclose(images, expected, atol=1e-6)


def test_the_curves_are_of_the_laundered_fakes(adversary, batches):
    images, is_fake = torch.rand(40, 3, 32, 32), torch.arange(40) % 2
    images = torch.where(is_fake[:, None, None, None] > 0, images / 2, images)
    answers = images.mean((1, 2, 3))  # fakes are darker, so a detector of brightness finds none of them

    class Trainer:
        averaged = staticmethod(lambda images: -images.mean((1, 2, 3)))

        def validate(self, name, answer):
            with torch.no_grad():
                return answer((images, is_fake.float())).numpy(), is_fake.numpy()

    adversary.discriminator.forward = lambda images: images[:, :1]
    adversary.forward = lambda fakes: fakes
    curves = adversary.curves(Trainer(), -answers.numpy())
    assert curves["val_laundered_found"] == pytest.approx(0.9) and curves["val_discriminator_auc"] == 1
    adversary.forward = lambda fakes: fakes + 0.5
    curves = adversary.curves(Trainer(), -answers.numpy())
    assert curves["val_laundered_found"] == 0 and curves["val_discriminator_auc"] < 0.5


def test_evasion_trains_the_detector_to_be_fooled_as_it_predicts(adversary, batches):
    classifier = RealFakeClassifier("test_resnet.r160_in1k").train()
    before = {name: value.clone() for name, value in classifier.named_buffers()}
    loss = adversary.laundering_losses(batches[1], classifier)["evasion"]
    with torch.no_grad():
        expected = nn.functional.softplus(classifier.eval()(adversary(batches[1]))).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in classifier.named_buffers())


def test_without_a_perceptual_part_there_is_none(batches):
    adversary = small(perceptual_weight=0.0)
    assert set(adversary.laundering_losses(batches[1], RealFakeClassifier("test_resnet.r160_in1k"))) == {
        "adversarial",
        "evasion",
    }


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.slow
def test_the_launderer_learns_to_pass_for_a_photo():
    """Fakes are photos with a checkerboard, that a discriminator has learnt to see: it hides it on unseen ones too."""
    adversary = small(launderer_bound=0.1, perceptual_weight=0.0, pretrained=True)
    board = 0.03 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2 - 1)
    seen, unseen = (equalised(photo_crops(names, side=32), adversary.quality) for names in (SEEN, UNSEEN))
    discriminator = torch.optim.Adam(adversary.discriminator.parameters(), 3e-3)
    launderer = torch.optim.Adam(adversary.generator.parameters(), 5e-3)
    harmless = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 1), nn.Flatten(0)).requires_grad_(False)

    def drawn():
        photos, fakes = seen[torch.randint(len(seen), (2, 8))]
        return photos, equalised(fakes + board, adversary.quality)

    def told(changed):
        with torch.no_grad():
            opinions = [adversary.discriminator(images).mean((1, 2, 3)) for images in (unseen, changed)]
        return roc_auc_score([1] * len(unseen) + [0] * len(unseen), torch.cat(opinions))

    for _ in range(40):
        photos, fakes = drawn()
        step(discriminator, adversary.discriminator_loss(photos, adversary(fakes)))
    fakes = equalised(unseen + board, adversary.quality)
    assert told(fakes) > 0.9 and told(adversary(fakes)) > 0.9
    for _ in range(60):
        step(launderer, adversary.laundering_losses(drawn()[1], harmless)["adversarial"])
    assert told(adversary(fakes)) < 0.75
