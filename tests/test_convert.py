"""Models whose convolutions become deformable: the same weights, and the same answer at first."""

import copy
import doctest
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import is_parametrized

import dcn_tvm
from dcn_tvm.nn import DeformConv2dPack, conversion, convert


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, **{"padding": 1, **options})


def network() -> nn.Sequential:
    """Three convolutions: `0`, `2.first` and `2.second`."""
    block = nn.Sequential()
    block.add_module("first", conv())
    block.add_module("second", conv(bias=False))
    return nn.Sequential(conv(), nn.ReLU(), block)


def packs(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, DeformConv2dPack)]


GEOMETRIES: dict[str, dict[str, Any]] = {
    "number": {"padding": 1},
    "pair": {"kernel_size": (1, 3), "padding": (0, 2), "stride": (1, 2)},
    "same": {"padding": "same", "dilation": (2, 1)},
    "valid": {"padding": "valid", "stride": 2, "groups": 2, "bias": False},
    "same_even": {"kernel_size": 2, "padding": "same", "dilation": 2},
}


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_converted_layer_computes_what_the_plain_one_did(name: str, modulated: bool) -> None:
    layer = nn.Conv2d(4, 6, **{"kernel_size": 3, **GEOMETRIES[name]})
    x = torch.randn(2, 4, 9, 8)
    expected = layer(x)
    pack = convert(layer, "*", modulated=modulated)
    assert type(pack) is DeformConv2dPack
    torch.testing.assert_close(pack(x), expected)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("0", ["0"]),
        ("2.*", ["2.first", "2.second"]),
        ("*first", ["2.first"]),
        (["2.second", "0"], ["0", "2.second"]),
        (("2.f*", "2.first"), ["2.first"]),
        ((name for name in ["0"]), ["0"]),
        ([], []),
        (lambda name, layer: layer.bias is None, ["2.second"]),
        (lambda name, layer: name.startswith("2"), ["2.first", "2.second"]),
    ],
)
def test_layers_are_chosen_by_name_pattern_or_function(layers: Any, expected: list[str]) -> None:
    model = network()
    assert convert(model, layers) is model
    assert packs(model) == expected


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("2.frist", "'2.frist'; near names: 2.first"),
        (["0", "3.*"], r"'3\.\*'; near names: "),
        ("1", "'1', a ReLU"),
        (lambda name, layer: False, "none of 3"),
    ],
)
def test_what_names_no_convolution_is_refused(layers: Any, words: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=words):
        convert(model, layers)
    assert packs(model) == []


def test_layers_of_a_wrong_type_are_refused() -> None:
    for layers in (3, [3]):
        with pytest.raises(TypeError, match=r"names? or .*pattern.*got"):
            convert(network(), layers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the model has none"):
        convert(nn.Sequential(nn.ReLU()), "0")


def test_parameters_stay_the_same_objects_and_the_head_is_new() -> None:
    model = network()
    before = dict(model.named_parameters())
    kept = before["2.first.weight"].detach().clone()
    before["2.first.bias"].requires_grad_(False)
    model.eval()
    convert(model, "2.first", offset_groups=2, boundary="msra")
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert torch.equal(after["2.first.weight"], kept)
    assert after.keys() - before.keys() == {
        "2.first.conv_offset.weight",
        "2.first.conv_offset.bias",
    }
    assert not after["2.first.bias"].requires_grad
    pack = model[2].first
    assert (pack.offset_groups, pack.boundary, pack.modulated) == (2, "msra", False)
    assert pack.conv_offset.weight.shape == (36, 4, 3, 3)
    assert all(p.requires_grad and not p.any() for p in pack.offset_parameters())
    assert not any(layer.training for layer in pack.modules())
    assert list(model.state_dict())[:5] == ["0.weight", "0.bias", *list(after)[2:5]]


def test_a_mask_doubles_the_weight_and_nothing_else() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    convert(model, ["0", "2.second"], modulated=True)
    after = model.state_dict()
    for name, value in before.items():
        factor = 2 if name in ("0.weight", "2.second.weight") else 1
        assert torch.equal(after[name], factor * value), name


def test_type_device_layout_and_random_numbers_are_kept() -> None:
    layer = conv(dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    state = torch.get_rng_state()
    pack = convert(layer, "*")
    assert torch.equal(torch.get_rng_state(), state)
    head = pack.conv_offset.weight
    assert head.dtype == torch.bfloat16
    assert head.is_contiguous(memory_format=torch.channels_last)
    assert not head.is_contiguous()
    assert convert(conv(), "*").conv_offset.weight.is_contiguous()
    away = convert(conv(device="meta", dtype=torch.float64), "*", modulated=True)
    assert {p.device.type for p in away.parameters()} == {"meta"}
    assert away.conv_offset.weight.dtype == torch.float64


def test_hooks_of_calls_move_and_their_handles_still_remove_them() -> None:
    seen: list[str] = []
    layer = conv()
    layer.register_forward_pre_hook(lambda _, args: seen.append("before"))
    layer.register_forward_hook(lambda _, args, kwargs, out: seen.append("after"), with_kwargs=True)
    handle = layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    pack = convert(layer, "*")
    x = torch.randn(2, 4, 9, 8, requires_grad=True)
    pack(x).sum().backward()
    assert seen == ["before", "after", "backward"]
    handle.remove()
    pack(x).sum().backward()
    assert seen == ["before", "after", "backward", "before", "after"]


def test_one_layer_in_two_places_becomes_one_layer() -> None:
    shared = conv()
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, conv())})
    gone = weakref.ref(shared)
    convert(model, "b.0", modulated=True)
    del shared
    assert type(model["a"]) is DeformConv2dPack
    assert model["a"] is model["b"][0]
    assert gone() is None  # the plain layer is nowhere


def test_a_shared_weight_is_doubled_once_or_not_at_all() -> None:
    model = nn.Sequential(conv(), conv(), nn.ReLU())
    model[1].weight = model[0].weight
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="'0' without '1'"):
        convert(model, "0", modulated=True)
    assert torch.equal(model[0].weight, before)
    assert packs(convert(copy.deepcopy(model), "0")) == ["0"]
    convert(model, "*", modulated=True)
    assert model[0].weight is model[1].weight
    assert torch.equal(model[0].weight, 2 * before)


class Own(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class Renamed(nn.Conv2d):
    pass


def patched() -> nn.Conv2d:
    layer = conv()
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


def pruned() -> nn.Conv2d:
    layer: nn.Conv2d = prune.l1_unstructured(conv(), "weight", amount=0.5)
    return layer


def watched() -> nn.Conv2d:
    layer = conv()
    layer.register_state_dict_pre_hook(lambda *_: None)
    return layer


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "padding_mode": (lambda: conv(padding_mode="reflect"), "padding_mode='reflect'"),
    "uneven": (lambda: nn.Conv2d(4, 4, (3, 2), padding="same"), "2 rows and 1 columns"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 3), "a ConvTranspose2d"),
    "lazy": (lambda: nn.LazyConv2d(4, 3), "lazy"),
    "own_forward": (lambda: Own(4, 4, 3), "Own with a forward of its own"),
    "patched": (patched, "a forward of its own"),
    "weight_norm": (lambda: parametrizations.weight_norm(conv()), "parametrised"),
    "pruned": (pruned, "pruned"),
    "complex": (lambda: conv(dtype=torch.complex64), "complex64"),
    "state_hooks": (watched, "state_dict_pre_hooks"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature", "ignore:Lazy modules")
def test_what_cannot_be_taken_over_is_refused_and_nothing_is_changed(name: str) -> None:
    make, words = REFUSED[name]
    model = nn.Sequential(conv(), make())
    weight = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=words) as error:
        convert(model, ["0", "1"], modulated=True)
    assert "'1'" in str(error.value)
    assert packs(model) == []
    assert torch.equal(model[0].weight, weight)
    assert is_parametrized(model[1]) == (name == "weight_norm")


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="4 channels of layer '0', got 3"):
        convert(network(), "0", offset_groups=3)
    with pytest.raises(ValueError, match="'reflect'"):
        convert(network(), "0", boundary="reflect")


def test_a_subclass_that_computes_alike_is_taken() -> None:
    assert type(convert(Renamed(4, 4, 3, padding=1), "*")) is DeformConv2dPack


def test_converting_again_leaves_offset_heads_alone() -> None:
    model = convert(network(), "2.first")
    convert(model, "*")
    assert packs(model) == ["0", "2.first", "2.second"]
    with pytest.raises(ValueError, match=r"'2\.first\.conv_offset'"):
        convert(model, "2.first.conv_offset")


def test_a_converted_model_copies_pickles_saves_and_learns() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # made before
    convert(model, "2.*", modulated=True)
    optimizer.add_param_group({"params": [p for n, p in model.named_parameters() if "_off" in n]})
    x, before = torch.randn(2, 4, 9, 8), copy.deepcopy(model)
    model(x).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before.get_parameter(name)), name
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    fresh = convert(network(), "2.*", modulated=True)
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
        assert torch.equal(same(x), model(x))
    groups = dcn_tvm.nn.parameter_groups(model, lr=1.0, beta=0.1)
    assert len(groups[1]["params"]) == 4


def test_a_model_wrapped_for_distributed_training_is_refused() -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network())
        with pytest.raises(ValueError, match="before it is wrapped"):
            convert(wrapped, "*")
        model = nn.parallel.DistributedDataParallel(convert(network(), "0"))
        model(torch.randn(2, 4, 9, 8)).sum().backward()
        assert model.module[0].conv_offset.weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()


def test_the_example_runs() -> None:
    result = doctest.testmod(conversion, extraglobs={"dcn_tvm": dcn_tvm})
    assert result.attempted > 0
    assert result.failed == 0
