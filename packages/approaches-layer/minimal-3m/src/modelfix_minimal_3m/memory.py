"""How much memory an engine needs, known before anything is allocated."""

ENTRY = 16  # bytes of a matrix entry: value and index, with room for the factorisation
LAZY_ROWS = 3  # rows that a point needs in the end, about
MARABOU_PAIR = 700  # bytes for each pair of weights in the l1 encoding, measured with Marabou 2.0
MARABOU_CELL = 8  # bytes of a cell of Marabou's dense tableau


def estimate(engine: str, norm: str, points: int, features: int, outputs: int, classes: int) -> int:
    """Estimate the memory of one solve in bytes.

    Parameters
    ----------
    engine : {"lp_lazy", "lp", "milp", "marabou"}
        ``milp`` is an inner layer's program.
    norm : {"l1", "linf"}
    points : int
        Points k to be made right.
    features : int
        Inputs D of the changed layer.
    outputs : int
        Outputs of the changed layer; the classes C for the last one.
    classes : int
    """
    weights = features * outputs
    if engine == "marabou":
        if norm == "l1":
            return MARABOU_PAIR * weights**2
        rows = points * (2 * outputs - 1)
        return MARABOU_CELL * rows * (weights + points * outputs + rows)
    if engine == "milp":
        # The weights of one point are one number for each output.
        weights = weights if points > 1 else outputs
        return ENTRY * (points * weights + 6 * weights + points * outputs * (8 + classes))
    parts = 4 if norm == "l1" else 2  # entries of a row for each feature
    rows = points * (LAZY_ROWS if engine == "lp_lazy" else classes - 1)
    if engine == "lp_lazy":
        weights = features * min(outputs, points * (1 + LAZY_ROWS))
    return ENTRY * (rows * parts * features + 2 * parts * weights)
