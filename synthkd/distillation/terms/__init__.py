"""Terms of the student's loss, and the auxiliary layers that some of them train beside the student.

Import from the modules; `synthkd.distillation` exports what others use.
"""
