"""The arithmetic of the library once more: plain, slow, and written without looking.

These modules were written from the description of the arithmetic alone, in NumPy and ml_dtypes,
and import neither JAX nor the package. The package is compared with them bit for bit, so what
they must be is obvious: float32 operations one at a time in the order the description gives
them, `numpy.frexp` for exponents, integers for random bits, float64 for matrix products.

Where a module of the package is clever (dividing on a GPU, drawing bits without repeating
rounds), its counterpart here is the sentence that the cleverness must not change.
"""
