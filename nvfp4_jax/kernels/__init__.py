"""One file an operation and implementation; `xla` is the readable definition of them all."""
