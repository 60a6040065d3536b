"""The table of backends: `backend: NAME` in a rule is a key of `BACKENDS`; `create` builds it.

Owns the names, which module classes a backend serves, and which kwargs it takes; a wrong kwarg is
found here, by the same code for rule files and for callers. Imports nothing heavy: a backend's own
file is imported when one is created. Knows nothing of rule files or of how a backend computes.
"""

import importlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hybrid_k2.errors import BadInputError

if TYPE_CHECKING:
    from hybrid_k2.backends.context import BackendContext
    from hybrid_k2.quant.stored import StoredTensor

MODULE_CLASSES = ("Embedding", "Norm", "Linear", "Attention", "MLP", "Router", "Experts")


@dataclass(frozen=True, slots=True)
class KwargSpec:
    """One keyword of a backend: its type, default, allowed values and a line of help.

    `cuda_default` replaces `default` where the module's device is a GPU. `pattern` must match a
    str value as a whole; `help` then says in words what it matches. `is_for_loader`: it says how
    the tensors get to the backend, which itself is not told.
    """

    type: type
    default: Any
    choices: tuple[Any, ...] = ()
    help: str = ""
    cuda_default: Any = None
    pattern: str = ""
    is_for_loader: bool = False

    @property
    def expected(self) -> str:
        """What a value may be, in words: the end of an error message."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        if self.pattern:
            return self.help
        names = {int: "an int of 0 or more", float: "a float of 0 or more", bool: "true or false"}
        return names[self.type]

    def accepts(self, value: Any) -> bool:
        """True where `value` has exactly the type (a bool is no int) and is allowed; no number may
        be negative.
        """
        if type(value) is not self.type and (self.type, type(value)) != (float, int):
            return False
        if self.type in (int, float) and not 0 <= value < math.inf:
            return False
        if self.pattern and not re.fullmatch(self.pattern, value):
            return False
        return not self.choices or value in self.choices


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """One backend: the classes it serves, its kwargs, and where `create` finds it.

    `factory` is "module:Class"; `{module_class}` in it stands for the class being served.
    """

    name: str
    serves: tuple[str, ...]
    factory: str
    summary: str
    kwargs: Mapping[str, KwargSpec] = field(default_factory=dict)

    def resolve_kwargs(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns all kwargs with defaults filled in and devices in full (`cuda` becomes `cuda:0`).

        Raises BadInputError for one that this backend does not take, naming the nearest, and for
        a value that is not allowed, naming those that are.
        """
        for key, value in kwargs.items():
            if key not in self.kwargs:
                raise BadInputError(
                    f"backend {self.name!r} has no kwarg {key!r}{did_you_mean(key, self.kwargs)}"
                )
            if not self.kwargs[key].accepts(value):
                raise BadInputError(
                    f"backend {self.name!r}: {key}: {value!r} is not {self.kwargs[key].expected}"
                )
        device = canonical_device(kwargs.get("device", self.default_device))
        resolved = {}
        for key, spec in self.kwargs.items():
            on_cuda = device != "cpu" and spec.cuda_default is not None
            resolved[key] = kwargs.get(key, spec.cuda_default if on_cuda else spec.default)
        if "device" in resolved:
            resolved["device"] = device
        return resolved

    @property
    def default_device(self) -> str:
        """The device of a module of this backend whose rule names none."""
        return self.kwargs["device"].default if "device" in self.kwargs else "cpu"


def canonical_device(device: str) -> str:
    """Spells a device in full: `cuda` is `cuda:0`."""
    return "cuda:0" if device == "cuda" else device


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown `word`: the nearest known one, all where few."""
    names = sorted(known)
    nearest = get_close_matches(word[:80], names, n=1, cutoff=0.5)
    guess = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return guess + (f" (known: {', '.join(names)})" if names else " (none is known)")


# Where the weights of a CPU backend lie: values of `load:`.
MMAP, RAM, RAM_HUGE = "mmap", "ram", "ram+hugepages"

# Formats that the GPU's kernels read as stored; hybrid_k2/kernels/matrix.py decodes them.
_GPU_FORMATS = frozenset(
    ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
)


def stays_stored(quant: str) -> bool:
    """True where `weights: stored` keeps a format's blocks in VRAM; others become bfloat16."""
    return quant in _GPU_FORMATS


_ANY_DEVICE = KwargSpec(str, "cpu", help="cpu, cuda or cuda:N", pattern=r"cpu|cuda(:\d{1,3})?")
_GPU_DEVICE = KwargSpec(str, "cuda:0", help="cuda or cuda:N", pattern=r"cuda(:\d{1,3})?")
_GPU_WEIGHTS = KwargSpec(
    str,
    "stored",
    choices=("stored", "bfloat16"),
    help="stored: blocks as in the file, where kernels read them; bfloat16: decoded at load",
)
_LOAD = KwargSpec(
    str,
    MMAP,
    choices=(MMAP, RAM, RAM_HUGE),
    help="mmap: used where the file is mapped; ram: read into memory of its own, on huge pages",
    is_for_loader=True,
)
_DEFERRED = KwargSpec(
    int, 0, help="of a decoded token's experts, that are added a layer later: faster and worse"
)
# The GPU reads these weights in place, so they may neither move nor be read from a file again.
_RAM_LOAD = KwargSpec(
    str,
    RAM_HUGE,
    choices=(RAM, RAM_HUGE),
    help="ram: read into memory of its own, which the GPU may read; or on huge pages",
    is_for_loader=True,
)
_KV_DTYPE = KwargSpec(
    str,
    "float32",
    cuda_default="bfloat16",
    choices=("float32", "bfloat16", "float16"),
    help="number format of the latent KV cache",
)
_GPU_KV_DTYPE = KwargSpec(
    str,
    "bfloat16",
    choices=("bfloat16", "int8"),
    help="number format of the latent KV cache; int8 with two scales a token, 0.8% off",
)

BACKENDS: dict[str, BackendSpec] = {
    spec.name: spec
    for spec in (
        BackendSpec(
            "reference",
            MODULE_CLASSES,
            "hybrid_k2.backends.reference:{module_class}",
            "float32 torch, decodes weights at every call: slow, the oracle of the others",
            {"device": _ANY_DEVICE},
        ),
        BackendSpec(
            "embedding",
            ("Embedding",),
            "hybrid_k2.backends.embedding:Embedding",
            "decodes the rows used from the mapped table; device is where they are put",
            {"device": _ANY_DEVICE},
        ),
        BackendSpec(
            "norm",
            ("Norm",),
            "hybrid_k2.backends.norm:Norm",
            "RMS norm, float32 weight; eps 0 means the model's own",
            {"device": _ANY_DEVICE, "eps": KwargSpec(float, 0.0, help="added to the mean square")},
        ),
        BackendSpec(
            "router",
            ("Router",),
            "hybrid_k2.backends.router:Router",
            "expert choice in float32; fewer experts than the model's are faster and worse",
            {
                "device": _ANY_DEVICE,
                "top_k": KwargSpec(int, 0, help="experts of a token; 0 means the model's own"),
            },
        ),
        BackendSpec(
            "attention",
            ("Attention",),
            "hybrid_k2.backends.attention:Attention",
            "MLA over the latent KV cache, which lives on its device",
            {"device": _ANY_DEVICE, "kv_dtype": _KV_DTYPE},
        ),
        BackendSpec(
            "attention_gpu",
            ("Attention",),
            "hybrid_k2.backends.attention_gpu:AttentionGpu",
            "MLA in bfloat16 by GPU kernels over the latent KV cache",
            {"device": _GPU_DEVICE, "kv_dtype": _GPU_KV_DTYPE},
        ),
        BackendSpec(
            "linear_cpu",
            ("Linear",),
            "hybrid_k2.backends.linear:LinearCpu",
            "CPU kernels on the stored blocks",
            {"load": _LOAD},
        ),
        BackendSpec(
            "mlp_cpu",
            ("MLP",),
            "hybrid_k2.backends.mlp:MlpCpu",
            "CPU kernels on the stored blocks",
            {"load": _LOAD},
        ),
        BackendSpec(
            "experts_cpu",
            ("Experts",),
            "hybrid_k2.backends.experts_cpu:ExpertsCpu",
            "routed experts by the CPU kernels on the stored blocks",
            {"load": _LOAD, "deferred_experts": _DEFERRED},
        ),
        BackendSpec(
            "experts_hybrid",
            ("Experts",),
            "hybrid_k2.backends.experts_hybrid:ExpertsHybrid",
            "as experts_cpu; a prompt's experts are shared with the GPU, sent there as they lie",
            {
                "load": _RAM_LOAD,
                "device": _GPU_DEVICE,
                "stream_mb": KwargSpec(
                    int, 1000, help="MB of VRAM for experts on their way, all layers together"
                ),
                "gpu_experts": KwargSpec(
                    int, 0, help="experts of each layer that stay in VRAM, the most used ones"
                ),
                "gpu_experts_mb": KwargSpec(
                    int, 0, help="MB of VRAM for them, all layers together, if that holds more"
                ),
                "over_bus": KwargSpec(
                    bool,
                    True,
                    help="in decode the GPU computes some experts from RAM, over the bus",
                ),
                "deferred_experts": _DEFERRED,
            },
        ),
        BackendSpec(
            "linear_gpu",
            ("Linear",),
            "hybrid_k2.backends.linear:LinearGpu",
            "stored blocks or bfloat16 on the GPU",
            {"device": _GPU_DEVICE, "weights": _GPU_WEIGHTS},
        ),
        BackendSpec(
            "mlp_gpu",
            ("MLP",),
            "hybrid_k2.backends.mlp:MlpGpu",
            "stored blocks or bfloat16 on the GPU",
            {"device": _GPU_DEVICE, "weights": _GPU_WEIGHTS},
        ),
    )
}

_CPU_DEFAULTS = {
    "Embedding": "embedding",
    "Norm": "norm",
    "Linear": "linear_cpu",
    "Attention": "attention",
    "MLP": "mlp_cpu",
    "Router": "router",
    "Experts": "experts_cpu",
}
_GPU_DEFAULTS = _CPU_DEFAULTS | {
    "Linear": "linear_gpu",
    "MLP": "mlp_gpu",
    "Attention": "attention_gpu",
    "Experts": "experts_hybrid",
}


def default_placement(module_class: str, device: str = "cpu") -> tuple[str, dict[str, Any]]:
    """The backend and its full kwargs for a module of that class that no rule matched.

    Routed experts lie in RAM whatever the device.
    """
    name = (_CPU_DEFAULTS if device == "cpu" else _GPU_DEFAULTS)[module_class]
    spec = BACKENDS[name]
    return name, spec.resolve_kwargs({"device": device} if "device" in spec.kwargs else {})


def create(
    name: str,
    module_class: str,
    tensors: Mapping[str, "StoredTensor"],
    context: "BackendContext",
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Builds a module on the named backend; `tensors` are its stored weights by short key.

    Raises BadInputError for an unknown backend, one that does not serve `module_class`, or a
    wrong kwarg.
    """
    spec = find_backend(name, module_class)
    resolved = {
        key: value
        for key, value in spec.resolve_kwargs(kwargs or {}).items()
        if not spec.kwargs[key].is_for_loader
    }
    module_name, _, attribute = spec.factory.format(module_class=module_class).partition(":")
    factory = getattr(importlib.import_module(module_name), attribute)
    return factory(tensors, context, **resolved)


def find_backend(name: str, module_class: str = "") -> BackendSpec:
    """The backend of that name; BadInputError where there is none or it cannot serve the class."""
    if name not in BACKENDS:
        raise BadInputError(f"unknown backend {name!r}{did_you_mean(name, BACKENDS)}")
    spec = BACKENDS[name]
    if module_class and module_class not in spec.serves:
        able = ", ".join(other.name for other in BACKENDS.values() if module_class in other.serves)
        raise BadInputError(
            f"backend {name!r} serves {', '.join(spec.serves)} and not {module_class}; use {able}"
        )
    return spec


def cpu_extension() -> ModuleType | None:
    """The C++ kernels `hybrid_k2._cpu`, or None where the package was built without a compiler."""
    try:
        return importlib.import_module("hybrid_k2._cpu")
    except ImportError:
        return None
