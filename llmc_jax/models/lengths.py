"""To how many tokens sequences are padded, so that there are few lengths to compile for."""

SHORTEST = 32  # tokens: below it, padding costs less than another compilation


def padded_length(length: int, longest: int) -> int:
    """The T that `length` tokens are computed with: 2^n or 3 * 2^n, so that there are few to
    compile and at most a third is padding."""
    T = SHORTEST
    while length > T:
        T = T * 3 // 2 if T & (T - 1) == 0 else T // 3 * 4
    return min(T, longest)
