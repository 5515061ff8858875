"""Networks that people run and that call torchvision's convolution: BasicSR's video restoration."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.transforms import functional

from dcn_tvm import compat

# BasicSR 1.4.2 imports a module by a name that torchvision has given up; its users do this, too.
sys.modules.setdefault("torchvision.transforms.functional_tensor", functional)
archs = pytest.importorskip("basicsr.archs", reason="BasicSR is not installed")


def basicvsrpp(patch: pytest.MonkeyPatch) -> nn.Module:
    from basicsr.archs.basicvsrpp_arch import BasicVSRPlusPlus

    with patch.context() as there:  # it leaves its alignment out where there is no GPU
        there.setattr(torch.cuda, "is_available", lambda: True)
        network: nn.Module = BasicVSRPlusPlus(mid_channels=16, num_blocks=1)
    return network


def edvr(patch: pytest.MonkeyPatch) -> nn.Module:
    from basicsr.archs.edvr_arch import EDVR

    network: nn.Module = EDVR(
        num_feat=16, num_frame=3, deformable_groups=4, num_extract_block=1, num_reconstruct_block=1
    )
    return network


@pytest.mark.parametrize("make", [basicvsrpp, edvr])
def test_video_restoration_runs_and_trains_alike(
    make: Callable[[pytest.MonkeyPatch], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make(monkeypatch)
    for name, parameter in network.named_parameters():
        if "conv_offset" in name:  # zero at first: then nothing moves
            nn.init.normal_(parameter, std=0.05)
    frames = torch.rand(1, 3, 3, 64, 64)

    def answers() -> list[torch.Tensor]:
        network.zero_grad()
        result = network(frames)
        result.square().mean().backward()
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        with torch.inference_mode():
            return [result, network(frames), *gradients]

    expected = answers()
    with compat.enable(), torch.profiler.profile() as profile:
        found = answers()
    ran = {event.key for event in profile.key_averages()}
    assert {"dcn_tvm::deform_conv2d", "dcn_tvm::deform_conv2d_backward"} <= ran
    assert "torchvision::_deform_conv2d_backward" not in ran
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    for one, other in zip(answers(), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
