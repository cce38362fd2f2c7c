"""Controllers that adapt to evaluations of the student: temperature, weights, strength, roles, selection of a teacher.

Import from the modules; `synthkd.distillation` exports what others use.
"""
