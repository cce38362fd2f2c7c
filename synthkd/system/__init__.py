"""Services of the operating system: atomic files, memory, signals, hardware, and text that is safe to print.

Import from the modules. Only `sealed` and `hardware` import torch.
"""
