"""The sections of ``python -m torchadx.bench inspect``: what is told is counted by other means first, then timed."""

import contextlib
from collections.abc import Callable, Collection, Iterator

import torch

from torchadx.bench import _inspect_graphs, _inspect_models, _inspect_steps
from torchadx.bench._inspect_models import CONV, DEEP, TRANSFORMER, Scale
from torchadx.bench._inspect_results import Case

#: contenders that can be left out
GROUPS = ("hooks", "torchviz", "torch.profiler")
#: which models each section looks at
SECTIONS: dict[str, tuple[str, ...]] = {
    "saved": (DEEP, TRANSFORMER, CONV),
    "graph": (DEEP, TRANSFORMER),
    "timeline": (DEEP, TRANSFORMER, CONV),
    "profile": (TRANSFORMER,),
    "page": (TRANSFORMER,),
}

_MEASURES: dict[str, Callable[[_inspect_models.Training, torch.device, int, Collection[str]], Case]] = {
    "saved": _inspect_graphs.measure_saved,
    "graph": _inspect_graphs.measure_graph,
    "timeline": _inspect_steps.measure_timeline,
    "profile": _inspect_steps.measure_profile,
    "page": _inspect_steps.measure_page,
}


def measure(
    section: str, name: str, scale: Scale, device: torch.device, rounds: int, without: Collection[str] = ()
) -> Case:
    """Check, then time one model in one section.

    Args:
        section: One of ``SECTIONS``.
        name: Of the model.
        scale: How large it is.
        device: Where it runs.
        rounds: Interleaved rounds.
        without: Of ``GROUPS``, those to leave out.

    Raises:
        WrongResultError: What ``torchadx.inspect`` tells differs from what was counted by other means.
    """
    training = _inspect_models.build(name, scale, device)
    with _one_thread() if name == DEEP else contextlib.nullcontext():
        return _MEASURES[section](training, device, rounds, without)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    # matrices as small as the deep model's gain nothing from threads, and wait for them on a busy machine
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
