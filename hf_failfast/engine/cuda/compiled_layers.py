"""Decoder layers compiled by torch's Inductor, for graphs of models that the fused decoder does not take.

Regional: one layer is traced, its weights among the inputs, and what is compiled serves all layers that differ in
their weights only, at every length of the text: the number of slots and the distance between the heads' slots are
symbols. Like a capture, the trace takes each decision of Python once and for all, and what could decide otherwise in
another layer or call is part of the key under which the result is kept. Our attention kernel stays a call of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers.cache_utils import Cache

from ..causal_lm import CausalLM
from .static_slots import ShownLayer

logger = logging.getLogger(__name__)

# Layers of more kinds than this would take long to compile, each kind for each number of tokens.
MAX_KINDS = 4

# Round intermediate results where the model's own operations round them.
_OPTIONS = {"emulate_precision_casts": True}

# In the trace: no number of slots that a model has, and a multiple of what kernels like to be aligned to.
_TRACED_SLOTS, _TRACED_CAPACITY = 2560, 3328

_INTERNAL = frozenset(vars(nn.Module()))
_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)

# torch's tracer replaces methods of classes while it runs.
_COMPILING = threading.Lock()

Key = tuple[object, ...]


class CompiledLayers:
    """What was compiled for one model, kept between calls. It refers to nothing of the model: weights are inputs."""

    def __init__(self) -> None:
        self.artifacts: dict[Key, Artifact] = {}
        self.failure: str | None = None
        self.takes_kernel = True  # no attempt with our attention kernel has failed

    def model(self, model: CausalLM) -> Any:
        """A model that computes the same on slots of `ShownLayer` by compiled layers; it shares all weights.

        Raises ValueError if its layers cannot be told apart from outside.
        """
        path, layers = _stack(model)
        kinds = _kinds(layers)
        if len(set(kinds)) > MAX_KINDS:
            raise ValueError(f"its {len(layers)} layers are of {len(set(kinds))} kinds")
        stack, seen = nn.ModuleList(), set[Key]()
        for index, (layer, kind) in enumerate(zip(layers, kinds, strict=True)):
            stand_in = _copy(layer)
            stand_in._modules, stand_in._parameters, stand_in._buffers = {}, {}, {}
            stand_in.forward = partial(self._forward, seen, layer, kind, index)
            stack.append(stand_in)
        return _with_part(model, path.split("."), stack)

    def _forward(self, seen: set[Key], layer: nn.Module, kind: Key, index: int, *args: Any, **kwargs: Any) -> Any:
        """A layer's forward, compiled where it meets inputs of a new kind; seen: what the layers of a forward need."""
        call = Call.of(layer, index, args, kwargs)
        key = (kind, *call.key)
        seen.add(key)
        if len(seen) > MAX_KINDS:
            raise ValueError(f"its layers are given inputs of more than {MAX_KINDS} kinds")
        if key not in self.artifacts:
            with _COMPILING:
                if key not in self.artifacts:
                    self.artifacts[key] = compiled(layer, call)
        call.own.is_written = True
        return self.artifacts[key](call)


class Call(NamedTuple):
    """The inputs of one layer's forward."""

    weights: list[torch.Tensor]
    given: list[torch.Tensor]
    others: tuple[object, ...]  # what else is given, in place: constants, and None for tensors and the cache
    structure: TreeSpec
    own: ShownLayer

    @classmethod
    def of(cls, layer: nn.Module, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Raises ValueError on what a trace cannot take as it is."""
        leaves, structure = tree_flatten((args, kwargs))
        caches = [leaf for leaf in leaves if isinstance(leaf, Cache)]
        if len(caches) != 1:
            raise ValueError(f"a layer is given {len(caches)} caches")
        others = tuple(_Place(type(leaf)) if isinstance(leaf, torch.Tensor | Cache) else leaf for leaf in leaves)
        unknown = [type(leaf).__name__ for leaf in others if not isinstance(leaf, (*_CONSTANTS, _Place))]
        weights = [held[name] for held, name in _tensors(layer)]
        unknown += [type(each).__name__ for each in weights if type(each) not in (torch.Tensor, nn.Parameter)]
        if unknown:
            raise ValueError(f"a layer has or is given a {unknown[0]}")
        given = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return cls(weights, given, others, structure, caches[0].layers[index])

    @property
    def slots(self) -> list[torch.Tensor]:
        """The layer's keys and values in sight, and where the window's go."""
        own = self.own
        return [own.keys[:, :, : own.num_slots], own.values[:, :, : own.num_slots], own.rows, own.slots]

    @property
    def key(self) -> Key:
        """What a trace fixes."""
        keys, values, *places = map(_layout, self.slots)
        in_slots = tuple((kind, size[:2], size[3:]) for kind, _, size, _ in (keys, values))
        given = tuple(_layout(each, self.own.num_slots) for each in self.given)
        kinds = tuple(map(type, self.others))  # True and 1 are equal
        return self.structure, self.others, kinds, in_slots, tuple(places), given, tuple(map(_layout, self.weights))

    @property
    def inputs(self) -> list[torch.Tensor]:
        return [*self.weights, *self.given, *self.slots]


class _Place(NamedTuple):
    """Stands for a tensor or a cache among the other arguments."""

    kind: type


def _layout(tensor: torch.Tensor, num_slots: int | None = None) -> tuple[Any, ...]:
    """What a trace fixes of a tensor; of masks not the number of slots."""
    if _is_mask(tensor, num_slots):
        return tensor.dtype, tensor.device, (*tensor.shape[:3], "slots"), None
    return tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride()


def _is_mask(tensor: torch.Tensor, num_slots: int | None) -> bool:
    return tensor.ndim == 4 and tensor.shape[3] == num_slots and tensor.is_contiguous()


class Artifact:
    """One compiled layer."""

    def __init__(
        self,
        run: Callable[..., Sequence[torch.Tensor]],
        outputs: Sequence[object],
        structure: TreeSpec,
        slots: Symbols,
    ) -> None:
        self.run = run
        self.outputs = outputs  # what it returns, in place: constants, and `_Place` for tensors
        self.structure = structure
        self.slots = slots

    def __call__(self, call: Call) -> Any:
        """The layer's outputs. Raises ValueError if it was compiled for other numbers of slots."""
        self.slots.check(call)
        tensors = iter(self.run(*call.inputs))
        leaves = [next(tensors) if isinstance(leaf, _Place) else leaf for leaf in self.outputs]
        return tree_unflatten(leaves, self.structure)


class Symbols:
    """The number of slots in sight and the distance from a head's slots to the next head's, unknown in a trace."""

    def __init__(self, environment: Any, width: int) -> None:
        self.environment = environment
        self.num_slots = self._new("slots", _TRACED_SLOTS)
        self.pitch = self._new("pitch", _TRACED_CAPACITY * width)
        self.names = self.num_slots.node.expr, self.pitch.node.expr

    def _new(self, name: str, hint: int) -> Any:
        from torch._dynamo.source import ConstantSource
        from torch.fx.experimental.symbolic_shapes import DimDynamic

        source = ConstantSource(name)
        symbol = self.environment.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC)
        return self.environment.create_symintnode(symbol, hint=hint, source=source)

    def check(self, call: Call) -> None:
        """Raises ValueError where what the trace has assumed of the symbols is not true of a call."""
        values = dict(zip(self.names, (call.own.num_slots, call.own.keys.stride(1)), strict=True))
        for expression in (guard.expr for guard in self.environment.guards):
            # What is right for slots with gaps between the heads' is right without gaps.
            is_of_gaps = (
                expression.is_Relational and expression.rel_op == "!=" and self.names[1] in expression.free_symbols
            )
            if not is_of_gaps and not expression.xreplace(values):
                raise ValueError(f"a layer was compiled for other numbers of slots ({expression})")


def compiled(layer: nn.Module, call: Call) -> Artifact:
    """Compiles a layer for inputs of the call's kind, with any number of slots. Raises what its trace raises."""
    from torch import _inductor
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv())
    symbols = Symbols(mode.shape_env, call.own.keys.shape[3])
    template = _template(layer)
    outputs: list[object] = []
    structures: list[TreeSpec] = []

    def trace(*inputs: torch.Tensor) -> list[torch.Tensor]:
        result = _called(template, call, inputs, symbols.num_slots)
        leaves, structure = tree_flatten(result)
        outputs[:] = [_Place(torch.Tensor) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        structures[:] = [structure]
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    inputs: list[Any] = _symbolic(call, mode, symbols)
    with mode:
        graph = make_fx(trace)(*inputs)
    if not all(isinstance(leaf, (*_CONSTANTS, _Place)) for leaf in outputs):
        raise ValueError("a layer returns what is neither a tensor nor a constant")
    with tracing(TracingContext(mode)):
        run: Any = _inductor.compile(graph, inputs, options=_OPTIONS)
    return Artifact(run, outputs, structures[0], symbols)


def _symbolic(call: Call, mode: Any, symbols: Symbols) -> list[torch.Tensor]:
    """Tensors without memory that stand for the call's inputs."""

    def like(tensor: torch.Tensor) -> torch.Tensor:
        options: Any = {"dtype": tensor.dtype, "device": tensor.device}
        if _is_mask(tensor, call.own.num_slots):
            return torch.empty(*tensor.shape[:3], symbols.num_slots, **options)
        return torch.empty_strided(tensor.shape, tensor.stride(), **options)

    def in_slots(states: torch.Tensor) -> torch.Tensor:
        num_rows, num_heads, _, width = states.shape
        size = num_rows, num_heads, symbols.num_slots, width
        stride = num_heads * symbols.pitch, symbols.pitch, width, 1
        return torch.empty_strided(size, stride, dtype=states.dtype, device=states.device)

    keys, values, *places = call.slots
    with mode:
        return [*map(like, call.weights), *map(like, call.given), in_slots(keys), in_slots(values), *map(like, places)]


def _called(template: nn.Module, call: Call, inputs: Sequence[torch.Tensor], num_slots: Any) -> Any:
    """The template's forward on these inputs, which stand for those of the call."""
    num_weights = len(call.weights)
    for (held, name), value in zip(_tensors(template), inputs[:num_weights], strict=True):
        held[name] = value
    given = iter(inputs[num_weights:])
    keys, values, rows, slots = inputs[-4:]
    cache = _Own(ShownLayer(keys, values, rows, slots, num_slots))
    leaves = [
        leaf if not isinstance(leaf, _Place) else next(given) if issubclass(leaf.kind, torch.Tensor) else cache
        for leaf in call.others
    ]
    args, kwargs = tree_unflatten(leaves, call.structure)
    result = template.forward(*args, **kwargs)
    if not cache.own.is_written:
        raise ValueError("a layer stores nothing in the cache")
    return result


class _Own(Cache):
    """The cache of the one layer that is traced, whatever its number."""

    def __init__(self, own: ShownLayer) -> None:
        self.own = own
        super().__init__(layers=[self.own])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: object, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.own.update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self, layer_idx: object = 0) -> int:
        return self.own.get_seq_length()


class _AnyNumber:
    """The number of the layer that is traced: whoever does more with it than ask a cache computes something else in
    another layer."""

    def _refuse(self, *_: object) -> Any:
        raise ValueError("what a layer computes depends on its number")

    __eq__ = __ne__ = __hash__ = __bool__ = _refuse  # the others are missing, and raise TypeError


# The module tree


def _stack(model: CausalLM) -> tuple[str, list[nn.Module]]:
    """Where the decoder layers are, and those that the model calls. Raises ValueError if they are not found."""
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
        is_long = isinstance(module, nn.ModuleList) and len(module) >= num_layers
        if is_long and any("layer_idx" in vars(part) for part in module.modules()):
            return path, list(module.children())[:num_layers]
    raise ValueError(f"no list of its {num_layers} layers is found")


def _with_part(module: Any, path: Sequence[str], part: nn.Module) -> Any:
    """A module that has `part` at `path`, and all else in common with `module`."""
    if not path:
        return part
    result = _copy(module)
    result._modules[path[0]] = _with_part(module._modules[path[0]], path[1:], part)
    return result


def _copy(module: nn.Module) -> Any:
    """A module with the same attributes, parts and tensors, whose lists of them are its own."""
    result = object.__new__(type(module))
    for name, value in vars(module).items():
        result.__dict__[name] = value.copy() if name in _INTERNAL and isinstance(value, dict | set) else value
    return result


def _template(layer: nn.Module) -> Any:
    """A layer to trace: all its modules copied, without hooks and number. Raises ValueError on hooks that are not
    transformers' own, which collect outputs."""
    result = _copy(layer)
    hooks = *layer._forward_hooks.values(), *layer._forward_pre_hooks.values()
    if not all((getattr(hook, "__module__", None) or "").startswith("transformers.") for hook in hooks):
        raise ValueError("a layer has hooks")
    if "forward" in vars(layer):
        raise ValueError(f"a {type(layer).__name__} has another forward")
    result._forward_hooks.clear()
    result._forward_pre_hooks.clear()
    if "layer_idx" in vars(layer):
        result.layer_idx = _AnyNumber()
    for name, part in layer._modules.items():
        result._modules[name] = None if part is None else _template(part)
    return result


def _tensors(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Where a module and its parts hold their tensors."""
    for _, part in module.named_modules(remove_duplicate=False):
        for held in (part._parameters, part._buffers):
            yield from ((held, name) for name, tensor in held.items() if tensor is not None)


def _kinds(layers: Sequence[nn.Module]) -> list[Key]:
    """Equal for layers that compute the same but for their weights."""
    exact = [_signature(layer, id) for layer in layers]
    return [(exact.index(own), *_signature(layer, type)) for layer, own in zip(layers, exact, strict=True)]


def _signature(layer: nn.Module, of_object: Callable[[object], object]) -> Key:
    """The switches of a layer's modules. of_object: what stands for a value that is no plain one."""

    def described(value: object) -> object:
        if isinstance(value, _CONSTANTS):
            return type(value), value
        if isinstance(value, list | tuple | set | frozenset):
            return type(value), tuple(map(described, value))
        if isinstance(value, dict):
            return tuple((described(key), described(each)) for key, each in value.items())
        if isinstance(value, partial):
            return partial, described(value.func), described(value.args), described(value.keywords)
        return getattr(value, "__qualname__", None), of_object(value)

    def switches(module: nn.Module) -> Iterator[object]:
        for name, value in vars(module).items():
            if name not in _INTERNAL and name != "layer_idx":
                yield name, described(value)

    return tuple((path, type(part), *switches(part)) for path, part in layer.named_modules(remove_duplicate=False))
