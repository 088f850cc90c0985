"""What the emulation costs, as ratios to BF16 or to a copy measured in the same run.

    options -> quantizers, linear, memory, step -> sections -> a table, and JSON

A time alone says little: GPUs differ, and one GPU's clock wanders by several percent. So whatever
is compared runs in turns within one process (`timing`), and every figure is a ratio.
"""
