"""A table of a model for people: which of its layers are contracted, and why others are not."""

from dataclasses import dataclass

import equinox as eqx
from jaxtyping import Array, PyTree, Shaped

from corrections.contraction.gradient_factors import GradientFactors
from corrections.parameters import check_metric, check_model, Metric, Model
from zoo.adapters.flax_layers import class_name
from zoo.common.examples import checked_batch, one_of
from zoo.contraction_rule import has_contraction_rule


@dataclass(frozen=True)
class ContractionRow:
    """Parameters of a model, and what becomes of them in its kernels.

    - `path`: where they are in the model.
    - `kind`: the type of the layer; empty for arrays of no layer that has a rule.
    - `parameters`: how many numbers.
    - `positions`: of a contracted layer, how many times its weight is used for an example.
    - `reason`: why it is not contracted; None where it is.
    """

    path: str
    kind: str
    parameters: int
    positions: int | None
    reason: str | None


@dataclass(frozen=True)
class ContractionSummary:
    """What `contraction_summary` found; `print` shows it as a table.

    - `rows`: the layers and other arrays in the order of the tree.
    """

    rows: tuple[ContractionRow, ...]

    @property
    def contracted(self) -> int:
        """How many of the parameters are in contracted layers."""
        return sum(row.parameters for row in self.rows if row.reason is None)

    def __str__(self) -> str:
        lines = [("layer", "path", "parameters", "kernels")]
        for row in self.rows:
            how = f"contracted, positions: {row.positions}" if row.reason is None else row.reason
            lines.append((row.kind, row.path, f"{row.parameters:,}", how))
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        texts = ["  ".join((*map(str.ljust, line[:3], widths), line[3])) for line in lines]
        texts.insert(1, "-" * max(map(len, texts)))
        of_all = sum(row.parameters for row in self.rows)
        total = f"{self.contracted:,} of {of_all:,} parameters are in contracted layers"
        return "\n".join([*texts, "", total])


def contraction_summary(
    model: Model, x: PyTree[Shaped[Array, "n ..."]], *, metric: Metric | None = None
) -> ContractionSummary:
    """Which layers of a model the kernels contract, for `print`.

    A contracted layer's gradients are never formed, or only where that is cheaper; all other
    parameters take the Jacobian, (n, k, parameters) numbers. Both give the same kernels: this says
    where the time goes. Nothing is computed: the program of the model is looked at.

    **Arguments:**

    - `model`, `metric`: as in `ntk`.
    - `x`: a batch of examples, of which shapes and types matter.

    **Returns:** a `ContractionSummary`.

    **Raises:** `ValueError` / `TypeError` for a model, examples or a metric that `ntk` refuses.
    """
    x = checked_batch("x", x)
    check_model(model, "x", x)
    check_metric(model, metric)
    rows: list[ContractionRow] = []

    def look(model: Model, metric: Metric | None) -> None:
        rows.extend(_rows(GradientFactors(model, one_of(x), metric)))

    eqx.filter_eval_shape(look, model, metric)
    return ContractionSummary(tuple(rows))


def _rows(factored: GradientFactors) -> list[ContractionRow]:
    sizes, _ = factored.sizes()
    positions = {place: size[0] for place, size in zip(factored.places, sizes, strict=True)}
    rows = []
    for i, (path, node, count, used) in enumerate(factored.nodes):
        if count == 0:
            continue
        ruled = has_contraction_rule(node)
        kind = class_name(node) if ruled else ""
        reason = None
        if i not in positions:
            reason = "Jacobian" if used else "no output depends on it"
        if ruled and i in factored.refused:
            reason = f"Jacobian: it {factored.refused[i]}"
        rows.append(ContractionRow(path, kind, count, positions.get(i), reason))
    return rows
