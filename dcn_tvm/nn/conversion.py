"""Plain convolutions of a model become deformable ones, with their weights (the paper, 3)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DistributedDataParallel

from dcn_tvm.binding import DTYPES
from dcn_tvm.nn.conv import DeformConv2dPack
from dcn_tvm.nn.parameters import MakesOffsets
from dcn_tvm.ops.deform_conv2d import BOUNDARIES

Layers = str | Iterable[str] | Callable[[str, nn.Conv2d], bool]

# A handle that removes a hook holds the dictionary of the hooks: it moves as it is.
_CALL_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook"),
)
# These may hold the layer that they were made for, and know nothing of an offset head.
_STATE_HOOKS = (
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


def convert(
    model: nn.Module,
    layers: Layers,
    *,
    offset_groups: int = 1,
    modulated: bool = False,
    boundary: str = "zeros",
) -> nn.Module:
    """Turn chosen `torch.nn.Conv2d` of a model into `DeformConv2dPack`, in place.

    A new layer takes over weight and bias, as the same Parameters, so that an optimiser made before
    still trains them, and the hooks of its calls. Its offset head `conv_offset` is new, learns,
    and starts at zero: the model computes what it did. An optimiser made before does not know the
    heads: add them, or make it afterwards with `parameter_groups`. A convolution that stands in
    several places becomes one layer in all of them. Offset heads themselves are never converted.

    In the state_dict `<layer>.conv_offset.weight` and `.bias` are new, all other names stay. Wrap
    the model in DistributedDataParallel and compile it afterwards.

    Args:
        model: a network; if it is itself the convolution, the new layer is returned.
        layers: the name of a layer as in `named_modules()`, a pattern of names (`"layer4.*.conv2"`;
            `*` matches dots too), several of them, or a function of (name, convolution) that says
            whether to take it.
        offset_groups: groups of input channels that move apart.
        modulated: whether to learn a mask too (v2). A mask starts at 1/2, so the weight is doubled
            in place, which is exact, and the model still computes what it did. Load the weights of
            the plain model before, not after: else the response is half of what it was.
        boundary: "zeros" or "msra", what lies outside the map.

    Returns:
        The model.

    Raises:
        TypeError: layers is none of the above.
        ValueError: a name or pattern fits no `torch.nn.Conv2d`, or a function takes none; a layer
            cannot be converted, and the text says why; offset_groups or boundary does not fit. The
            model is then as it was.

    Source: Dai et al., Deformable Convolutional Networks, section 3; mask: Zhu et al., Deformable
    ConvNets v2, section 3.2. Peer: torch.nn.SyncBatchNorm.convert_sync_batchnorm.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3))
        >>> x = torch.randn(1, 3, 8, 8)
        >>> before, model = model(x), dcn_tvm.nn.convert(model, "2")
        >>> type(model[2]).__name__, torch.allclose(model(x), before, atol=1e-5)
        ('DeformConv2dPack', True)
    """
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {BOUNDARIES}, got {boundary!r}")
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError(
            "model must be converted before it is wrapped, got a DistributedDataParallel, which "
            "does not learn of new parameters"
        )
    chosen = _chosen(model, layers)
    for conv, name in chosen.items():
        _check(conv, name)
    if modulated:
        _check_weights_apart(model, chosen)
    packs = {
        conv: _pack(conv, name, offset_groups, modulated, boundary) for conv, name in chosen.items()
    }
    if modulated:
        with torch.no_grad():
            for weight in {conv.weight: None for conv in chosen}:
                weight.mul_(2)
    for parent in list(model.modules()):
        for leaf, child in parent._modules.items():
            if isinstance(child, nn.Conv2d) and child in packs:
                parent._modules[leaf] = packs[child]
    return packs.get(model, model) if isinstance(model, nn.Conv2d) else model


def _chosen(model: nn.Module, layers: Layers) -> dict[nn.Conv2d, str]:
    """The convolutions to convert, each with a name for messages."""
    heads = {
        parameter
        for layer in model.modules()
        if isinstance(layer, MakesOffsets)
        for parameter in layer.offset_parameters()
    }
    convs = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Conv2d) and module._parameters.get("weight") not in heads
    }
    if isinstance(layers, str):
        layers = [layers]
    if callable(layers):
        names = [name for name, conv in convs.items() if layers(name, conv)]
        if not names:
            raise ValueError(
                f"layers must choose a torch.nn.Conv2d, got none of {len(convs)}{_some(convs)}"
            )
    else:
        names = _matching(model, convs, layers)
    chosen: dict[nn.Conv2d, str] = {}
    for name in names:
        chosen.setdefault(convs[name], name)
    return chosen


def _matching(
    model: nn.Module, convs: Mapping[str, nn.Conv2d], patterns: Iterable[str]
) -> list[str]:
    names: list[str] = []
    if not isinstance(patterns, Iterable):
        raise TypeError(
            "layers must be a name or a pattern, several of them, or a function of (name, conv), "
            f"got {type(patterns).__name__}"
        )
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"layers must be names or patterns, got {pattern!r}")
        found = [name for name in convs if name == pattern or fnmatchcase(name, pattern)]
        if not found:
            others = dict(model.named_modules(remove_duplicate=False))
            what = f", a {type(others[pattern]).__name__}" if pattern in others else ""
            raise ValueError(
                "layers must name a torch.nn.Conv2d of the model, got "
                f"{pattern!r}{what}{_some(convs, pattern)}"
            )
        names += found
    return names


def _some(convs: Mapping[str, nn.Conv2d], like: str | None = None) -> str:
    """Names to offer: those like the one given, else the first."""
    near = difflib.get_close_matches(like, convs, n=5, cutoff=0.5) if like else []
    offered = near or list(convs)[:5]
    return f"; near names: {', '.join(offered)}" if offered else "; the model has none"


def _check(conv: nn.Conv2d, name: str) -> None:
    """Refuse what a deformable layer cannot take over without changing what is computed."""
    kind = type(conv)
    own_forward = (
        kind.forward is not nn.Conv2d.forward
        or kind._conv_forward is not nn.Conv2d._conv_forward
        or "forward" in vars(conv)
    )
    reason = None
    if isinstance(conv, LazyModuleMixin):
        reason = "know its channels, got a lazy layer that has seen no input"
    elif set(conv._parameters) != {"weight", "bias"} or conv._buffers or conv._modules:
        reason = (
            "hold its weight as a Parameter and nothing else, got one that is parametrised, pruned "
            "or normalised: remove that first"
        )
    elif own_forward:
        reason = f"compute as torch.nn.Conv2d, got {kind.__name__} with a forward of its own"
    elif conv.padding_mode != "zeros":
        reason = f"be padded with zeros, got padding_mode={conv.padding_mode!r}"
    elif conv.weight.dtype not in DTYPES:
        reason = f"have a floating type of the op, got {conv.weight.dtype}"
    elif hooked := [hooks for hooks in _STATE_HOOKS if getattr(conv, hooks)]:
        reason = f"have no hooks of its state_dict, which cannot move, got {hooked[0].strip('_')}"
    if reason is not None:
        raise ValueError(f"layer {name!r} must {reason}")


def _check_weights_apart(model: nn.Module, chosen: Mapping[nn.Conv2d, str]) -> None:
    """Refuse to double a weight that a layer uses which stays as it is."""
    weights = {conv.weight: name for conv, name in chosen.items()}
    for name, module in model.named_modules():
        if module in chosen:
            continue
        for parameter in module._parameters.values():
            if parameter is not None and parameter in weights:
                raise ValueError(
                    "layers must name all that share a weight, which modulated=True doubles, got "
                    f"{weights[parameter]!r} without {name!r}"
                )


def _pack(
    conv: nn.Conv2d, name: str, offset_groups: int, modulated: bool, boundary: str
) -> DeformConv2dPack:
    if offset_groups < 1 or conv.in_channels % offset_groups:
        raise ValueError(
            f"offset_groups must divide the {conv.in_channels} channels of layer {name!r}, "
            f"got {offset_groups}"
        )
    with torch.device("meta"):  # neither memory nor random numbers for values that are replaced
        pack = DeformConv2dPack(
            conv.in_channels,
            conv.out_channels,
            _two(conv.kernel_size),
            _two(conv.stride),
            _padding(conv, name),
            _two(conv.dilation),
            conv.groups,
            conv.bias is not None,
            offset_groups,
            modulated,
            boundary,
        )
    for parameter in ("weight", "bias"):
        setattr(pack, parameter, getattr(conv, parameter))
    head = pack.conv_offset.to_empty(device=conv.weight.device).to(conv.weight.dtype)
    head.to(memory_format=_memory_format(conv.weight))
    for zero in pack.offset_parameters():
        init.zeros_(zero)
    for hooks in _CALL_HOOKS:
        setattr(pack, hooks, getattr(conv, hooks))
    return pack.train(conv.training)


def _padding(conv: nn.Conv2d, name: str) -> tuple[int, int]:
    """Pixels on each side; torch names "valid" and "same" too."""
    if not isinstance(conv.padding, str):
        return _two(conv.padding)
    if conv.padding == "valid":
        return 0, 0
    y, x = (d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    if y % 2 or x % 2:
        raise ValueError(
            f"layer {name!r} must be padded alike on both sides, got padding='same' of {y} rows "
            f"and {x} columns in all"
        )
    return y // 2, x // 2


def _two(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def _memory_format(weight: Tensor) -> torch.memory_format:
    if weight.is_contiguous() or not weight.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last
