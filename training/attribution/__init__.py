"""Teachers: what each word of a text contributed to a black box's answer."""

from training.attribution.api import attribute
from training.attribution.record import PREDICTED, Attribution, Teacher
from training.attribution.teachers import TEACHERS, teacher_named

__all__ = ["PREDICTED", "TEACHERS", "Attribution", "Teacher", "attribute", "teacher_named"]
