"""A run on a cluster, foreseen: what it needs of memory and network, and how long it takes.

options     what is asked            candidate   one way to run it: mesh, microbatches, remat
step        the real step, compiled for that cluster on a CPU
memory      by kind                  machine     what a GPU and its links can do
groups, collectives                  sizes, work what travels; what each kernel has to do
roofline    the schedule, played with a clock
search      which candidates to compile, by a model of a few lines
report      as text and JSON         run         all of it in turn
"""
