"""Classes that consist of several of a network's, or leave some of them out (ours).

Class g has the logit log sum_{k in g} exp z_k, so that its probability is the sum of its members'. The probability of a
class that no other has as a member (void) goes to the others in proportion.

Shapes: N images, C classes of the network, K classes of the model, H x W pixels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from storage.errors import SettingsError

Members = tuple[tuple[int, ...], ...]
"""For each class of a model the classes of the network that it consists of."""


def merge(logits_NCHW: Tensor, members: Members) -> Tensor:
    """Logits of merged classes, [N, K, H, W]. A single logit z, for a sigmoid, becomes [0, z]; then K is 2."""
    if logits_NCHW.shape[1] == 1:
        return torch.cat([torch.zeros_like(logits_NCHW), logits_NCHW], dim=1)
    if not members:
        return logits_NCHW
    return torch.cat([_merged(logits_NCHW, group) for group in members], dim=1)


def _merged(logits_NCHW: Tensor, group: tuple[int, ...]) -> Tensor:
    if len(group) == 1:
        return logits_NCHW[:, group[0] : group[0] + 1]
    return logits_NCHW[:, list(group)].logsumexp(dim=1, keepdim=True)


def arrange(
    count: int, names: Sequence[str] | None, merged: Mapping[str, Sequence[str]], dropped: Sequence[str]
) -> tuple[tuple[str, ...], Members]:
    """Names and members of the classes that are made of a network's ``count`` classes.

    ``names`` are those of the network's classes, or of the classes that are made, in the order that they shall have.
    Without such an order a merged class has the place of its first member. ``merged`` and ``dropped`` give classes of
    the network by name or number. The members are empty if the classes are the network's own.

    Raises:
        SettingsError: a class does not exist, is used twice, or the names fit neither.
    """
    own, numbers = _own_names(count, names), {str(index): index for index in range(count)}
    if names is not None and own == tuple(names):
        numbers |= {name: index for index, name in enumerate(own)}

    def find(classes: Sequence[str], field: str) -> tuple[int, ...]:
        for name in classes:
            if name not in numbers:
                known = ", ".join([*own[:8], "..."] if count > 8 else own)
                raise SettingsError(
                    f"{field}: the network has no class {name!r}; give one of {known} or 0 to {count - 1}", field=field
                )
        return tuple(numbers[name] for name in classes)

    gone = find(dropped, "drop_class")
    groups = {name: find(classes, "merge") for name, classes in merged.items()}
    used = [*gone, *(index for group in groups.values() for index in group)]
    if twice := sorted({index for index in used if used.count(index) > 1}):
        raise SettingsError(f"merge and drop_class use class {own[twice[0]]} twice; name it once", field="merge")
    groups |= {own[index]: (index,) for index in range(count) if index not in used}
    made = dict(sorted(groups.items(), key=lambda item: min(item[1])))
    if names is not None and own != tuple(names):
        made = _in_order(made, tuple(names), merged)
    if list(made.values()) == [(index,) for index in range(count)]:
        return tuple(made), ()
    return tuple(made), tuple(made.values())


def _own_names(count: int, names: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(names) if names is not None and len(names) == count else _numbered(count)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


def _in_order(
    made: Mapping[str, tuple[int, ...]], names: tuple[str, ...], merged: Mapping[str, Sequence[str]]
) -> dict[str, tuple[int, ...]]:
    """The classes that are made, by ``names``: the merged ones by their own, the others in their order."""
    if len(names) != len(made) or not merged.keys() <= set(names):
        missing = [name for name in merged if name not in names]
        raise SettingsError(
            f"class_names has {len(names)} names, but there are {len(made)} classes"
            + (f", and {missing[0]!r} is not among them" if missing else "")
            + "; name the network's classes, or those that are left after drop_class and merge",
            field="class_names",
        )
    others = iter(group for name, group in made.items() if name not in merged)
    return {name: made[name] if name in merged else next(others) for name in names}
