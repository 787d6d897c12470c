"""The teachers by name."""

from __future__ import annotations

from collections.abc import Mapping

from training.attribution import (
    deep_shap,
    gradient,
    integrated_gradients,
    kernel_shap,
    lime,
    lrp,
    occlusion,
    permutation_shap,
)
from training.attribution.embeddings import EmbeddingTeacher
from training.attribution.ensemble import PREFIX, EnsembleTeacher
from training.attribution.record import Teacher

TEACHERS: Mapping[str, Teacher] = {
    module.TEACHER.name: module.TEACHER
    for module in (
        occlusion,
        gradient,
        integrated_gradients,
        lrp,
        lime,
        kernel_shap,
        permutation_shap,
        deep_shap,
    )
}

# The others spend what the text or the network takes and ignore a budget.
BUDGETED = frozenset({"integrated_gradients", "lime", "kernel_shap", "permutation_shap"})
SAMPLES = 200  # where nobody names a budget
DEFAULT_BUDGETS: Mapping[str, int] = {
    **dict.fromkeys(BUDGETED, SAMPLES),
    "integrated_gradients": 22,  # 20 steps: a sum along a line needs no more, and each step costs
}


def teacher_named(name: str) -> Teacher:
    """Returns a teacher.

    Args:
        name: of one, or `ensemble:NAME+NAME…`.

    Raises:
        ValueError: naming those that exist.
    """
    if not name.startswith(PREFIX):
        if name not in TEACHERS:
            raise ValueError(
                f"no teacher {name!r}; choose one of {', '.join(TEACHERS)} or {PREFIX}NAME+NAME"
            )
        return TEACHERS[name]
    names = name.removeprefix(PREFIX).split("+")
    if len(set(names)) < len(names) or len(names) < 2 or any(n.startswith(PREFIX) for n in names):
        raise ValueError(f"{name}: name two or more different teachers, {PREFIX}lime+occlusion")
    return EnsembleTeacher(tuple(teacher_named(member) for member in names))


def takes_budget(name: str) -> bool:
    """Says whether a teacher, or a member of an ensemble, spends what it is given.

    Raises:
        ValueError: see `teacher_named`.
    """
    return default_budget(name) > 0


def looks_inside(name: str) -> bool:
    """Says whether a teacher, or a member of an ensemble, needs a torch model to look into.

    Raises:
        ValueError: see `teacher_named`.
    """
    return any(isinstance(member, EmbeddingTeacher) for member in _members(name))


def default_budget(name: str) -> int:
    """Returns the budget of a teacher where nobody names one, 0 where it spends what it takes.

    All members of an ensemble get the same, the largest of theirs.

    Raises:
        ValueError: see `teacher_named`.
    """
    return max(DEFAULT_BUDGETS.get(member.name, 0) for member in _members(name))


def _members(name: str) -> tuple[Teacher, ...]:
    found = teacher_named(name)
    return found.members if isinstance(found, EnsembleTeacher) else (found,)
