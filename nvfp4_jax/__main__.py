"""`python -m nvfp4_jax`: the same as the command `nvfp4`."""

from nvfp4_jax.cli import main

if __name__ == "__main__":
    main()
