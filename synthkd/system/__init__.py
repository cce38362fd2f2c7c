"""What the operating system is asked for: whole files, memory, signals, hardware, and text that is safe to print.

Import from the modules. Only `sealed` and `hardware` import torch.
"""
