"""PromQL expressions as syntax trees: which metrics one asks for."""

from __future__ import annotations

from typing import Any

import promql_parser

_CHILDREN = ("lhs", "rhs", "expr", "args", "vector_selector", "param")


def metrics_of(expression: str) -> set[str]:
    """Names of the metrics in an expression.

    Raises:
        ValueError: it is no PromQL.
    """
    return set(_names(promql_parser.parse(expression)))


def _names(node: Any) -> list[str]:
    found = [node.name] if isinstance(node, promql_parser.VectorSelector) and node.name else []
    for attribute in _CHILDREN:
        child = getattr(node, attribute, None)
        for item in child if isinstance(child, list) else [child]:
            if item is not None:
                found += _names(item)
    return found
