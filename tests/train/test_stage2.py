"""The fingerprinted carrier of stage 2: every loss reaches the extractor, D's labels are the right way round."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from networks import SEEN, UNSEEN, photo_crops
from sklearn.metrics import roc_auc_score

from dfd import config
from dfd.degrade.operators import jpeg
from dfd.losses import consistency_loss
from dfd.models.networks import Attribution
from dfd.train.stage1 import Adversary, equalised
from dfd.train.stage2 import attribution_losses, carrying, with_class_means


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Attribution("test_efficientnet.r160_in1k", 3, unet_width=4, residual_bound=0.1)


def small(**changes):
    return config.Stage2(**{"crop_size": 32, "pretrained": False, **changes})


@pytest.fixture
def adversary():
    torch.manual_seed(1)
    return Adversary(small())


@pytest.fixture
def batch():
    torch.manual_seed(2)
    views = {name: torch.rand(4, 3, 32, 32) for name in ("view1", "view2", "carrier")}
    return views | {"source": torch.tensor([0, 1, 2, 1])}


def reached(module):
    return any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def losses(model, adversary, batch, **changes):
    residual, put_on = model.generator(torch.cat([batch["view1"], batch["view2"]])), {}
    if adversary is not None:
        carried = equalised(batch["carrier"] + residual[:4], None if changes.get("equalise") is False else 90)
        put_on = {"adversary": adversary, "carriers": batch["carrier"], "carried": carried}
    return attribution_losses(model, residual, batch["source"], small(**changes), **put_on)


def test_every_weight_of_the_config_has_its_loss(model, adversary, batch):
    assert set(losses(model, adversary, batch)) == {"source", "carried", "adversarial", "perceptual", "consistency"}
    assert set(losses(model, None, batch)) == {"source", "consistency"}


@pytest.mark.parametrize("name", ["source", "carried", "adversarial", "perceptual", "consistency"])
def test_each_loss_gives_the_extractor_a_gradient(name, model, adversary, batch):
    losses(model, adversary, batch)[name].backward()
    assert reached(model.generator)
    assert reached(model.classifier) == (name in ("source", "carried", "consistency"))
    assert reached(adversary.discriminator) == (name == "adversarial")  # Trainer.step leaves it where it is
    assert not reached(adversary.perceptual)


def test_a_weight_of_zero_leaves_its_loss_out(model, batch):
    blind = Adversary(small(adversarial_weight=0.0, perceptual_weight=0.0))
    assert set(losses(model, blind, batch, carried_weight=0.0, consistency_weight=0.0)) == {"source"}


def test_the_discriminator_learns_real_residuals_and_tells_them_on_photos_that_it_has_not_seen(model):
    """Carriers against carriers with G's residual of another photo, both behind the codec; a coin has a hinge of 2."""
    torch.manual_seed(3)
    adversary = Adversary(small(pretrained=True, perceptual_weight=0.0))
    seen, unseen = (equalised(photo_crops(names), 90) for names in (SEEN, UNSEEN))
    optimizer, curve = torch.optim.AdamW(adversary.discriminator.parameters(), small().lr_d), []

    def carried(carriers, photos):
        with torch.no_grad():
            return equalised(carriers + model.generator(photos), 90)

    for _ in range(40):
        carriers, photos = seen[torch.randint(len(seen), (2, 8))]
        loss = adversary.discriminator_loss(carriers, carried(carriers, photos))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    adversary.eval()
    with torch.no_grad():
        opinions = [adversary.discriminator(x).mean((1, 2, 3)) for x in (unseen, carried(unseen, unseen.roll(16, 0)))]
    assert sum(curve[-10:]) / 10 < 1.7
    assert roc_auc_score([1] * len(unseen) + [0] * len(unseen), torch.cat(opinions)) > 0.6


def test_the_discriminators_loss_leaves_the_extractor_alone(model, adversary, batch):
    carried = equalised(batch["carrier"] + model.generator(batch["view1"]), 90)
    adversary.discriminator_loss(batch["carrier"], carried).backward()
    assert reached(adversary.discriminator) and not reached(model.generator)


def test_the_extractor_is_asked_to_look_like_a_photo(model, adversary, batch):
    """One step against the adversarial loss must raise D's opinion of the fingerprinted carriers."""
    adversary.eval()  # spectral norm would go on iterating
    batch["carrier"] = 0.3 + 0.4 * batch["carrier"]  # nothing to clip
    before = adversary.discriminator(batch["carrier"] + model.generator(batch["view1"])).mean()
    losses(model, adversary, batch, equalise=False)["adversarial"].backward()
    with torch.no_grad():
        for p in model.generator.parameters():
            p -= 0.05 * p.grad if p.grad is not None else 0
    after = adversary.discriminator(batch["carrier"] + model.generator(batch["view1"])).mean()
    assert after > before


def test_a_fingerprinted_carrier_is_the_clipped_sum_with_an_open_gradient():
    carriers, residual = torch.full((1, 3, 8, 8), 0.95), torch.full((1, 3, 8, 8), 0.1, requires_grad=True)
    put = equalised(carriers + residual, None)
    assert put.max().item() == pytest.approx(1.0)
    put.sum().backward()
    assert residual.grad.min() == 1


def test_the_codec_is_passed_with_the_gradient_of_doing_nothing():
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    passed = equalised(images, 70)
    assert torch.allclose(passed, jpeg(images.detach(), 70), atol=1e-6)
    (passed * torch.arange(16.0)).sum().backward()
    assert torch.equal(images.grad, torch.arange(16.0).expand(1, 3, 16, 16))


def test_every_other_fingerprint_is_the_mean_of_its_source():
    residual = torch.rand(6, 3, 8, 8, requires_grad=True)
    source = torch.tensor([2, 0, 2, 2, 0, 1])
    put = with_class_means(residual, source, 3)
    for number, mean in {1: [1, 4], 3: [0, 2, 3], 5: [5]}.items():
        assert torch.allclose(put[number], residual[mean].mean(0))
    assert torch.equal(put[::2], residual[::2])
    put[3].sum().backward()
    assert torch.allclose(residual.grad[2], torch.full((3, 8, 8), 1 / 3)) and not residual.grad[1].any()


def test_the_curves_are_of_carriers_with_and_without_a_fingerprint(model, adversary, batch):
    class Trainer:
        averaged = SimpleNamespace(module=model.eval())

        def validate(self, name, answer):
            with torch.no_grad():
                return answer(batch).numpy(), batch["source"].numpy()

    batch["carrier"] = 0.5 * torch.ones(4, 3, 32, 32)
    stripes, levels = 2 * (torch.arange(32) % 2) - 1, torch.tensor([-0.1, 0.0, 0.1])
    residual = 0.05 * stripes.expand(4, 3, 32, 32) + levels[[0, 1, 2, 0]][:, None, None, None]  # the last is wrong
    model.generator.forward = lambda images: residual
    model.forward = lambda images: -(images.mean((1, 2, 3))[:, None] - 0.5 - levels).abs()
    adversary.discriminator.forward = lambda images: -images.std((1, 2, 3))[:, None, None, None]
    curves = carrying(Trainer(), adversary)
    assert curves["val_discriminator_auc"] == 1
    assert curves["val_carried_accuracy"] == pytest.approx((1 + 1 / 2 + 1) / 3)


def test_consistency_is_the_jensen_shannon_divergence():
    first, second = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 0.5]])
    p, q = F.softmax(first, 1), F.softmax(second, 1)
    middle = (p + q) / 2
    expected = ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2
    assert consistency_loss(first, second).item() == pytest.approx(expected.item(), rel=1e-5)
    assert consistency_loss(first, first).item() == pytest.approx(0, abs=1e-6)


def test_carried_is_the_cross_entropy_of_the_fingerprints_source(model, adversary, batch):
    model.eval()
    torch.nn.init.normal_(model.classifier.backbone.get_classifier().weight, std=9)  # else all is as likely
    found = losses(model, adversary, batch)
    residual = model.generator(batch["view1"])
    seen = jpeg((batch["carrier"] + residual.detach()).clamp(0, 1), 90)
    expected = F.cross_entropy(model(seen), batch["source"], label_smoothing=config.Stage2().label_smoothing)
    assert found["carried"].item() == pytest.approx(expected.item(), rel=1e-3)
    names = model.name(torch.cat([residual, model.generator(batch["view2"])]))
    smoothing = config.Stage2().label_smoothing
    expected = F.cross_entropy(names, batch["source"].repeat(2), label_smoothing=smoothing)
    assert found["source"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_views_and_fingerprinted_carriers_share_one_batch_of_the_classifier(model, adversary, batch):
    """Apart, batch normalisation would tell them apart in training, and not when the model is used."""
    sizes = []
    model.classifier.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    losses(model, adversary, batch)
    assert sizes == [12]
