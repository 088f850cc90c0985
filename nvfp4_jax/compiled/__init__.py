"""What a compiled program really does: the proof that a recipe was honoured.

hlo         text -> instructions
flow        where a value comes from, across fusions and loops
kernels     what custom calls carry;  triton_ir: what a Triton kernel writes
roundings   was this operand rounded?
products    which products there are, and what runs them
proof       all of it against a recipe's table;  report: as text and JSON
"""
