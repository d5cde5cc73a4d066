"""Grafana dashboards as typed Python: queries and panels in, the JSON of one dashboard out.

Only what our dashboards use is here. Panels fill rows of 24 columns from left to right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

JsonObject = dict[str, Any]

COLUMNS = 24
SCHEMA_VERSION = 39
_DATASOURCE: JsonObject = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, kw_only=True)
class Query:
    """One PromQL expression of a panel."""

    expr: str
    legend: str = ""
    """Name of its series; `{{label}}` stands for a label's value."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel."""

    title: str
    description: str
    unit: str
    """A unit id of Grafana: short, percentunit (0 to 1), s, bytes, dateTimeFromNow, ..."""
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat", "bargauge"] = "timeseries"
    width: int = 8
    height: int = 8
    minimum: float | None = None
    maximum: float | None = None
    stacked: bool = False
    text_mode: Literal["auto", "name"] = "auto"
    """For kind stat: show the value, or the name of the series."""
    warn_above: float | None = None
    """Turns values above it orange."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A titled row of panels; `title` '' leaves the title out."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A whole dashboard for the run that the variable `run_id` names."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    tags: tuple[str, ...] = ("awac",)
    links: tuple[tuple[str, str], ...] = field(default=())
    """(title, uid) of dashboards to link to."""

    def to_json(self) -> JsonObject:
        """The model that Grafana imports."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": list(self.tags),
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "templating": {"list": [_datasource_variable(), _run_variable()]},
            "annotations": {"list": []},
            "links": [_link(title, uid) for title, uid in self.links],
            "panels": _lay_out(self.rows),
        }


def _lay_out(rows: tuple[Row, ...]) -> list[JsonObject]:
    panels: list[JsonObject] = []
    top = 0
    for row in rows:
        if row.title:
            position = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
            panels.append({"id": len(panels) + 1, "type": "row", "title": row.title, "collapsed": False,
                           "gridPos": position, "panels": []})  # fmt: skip
            top += 1
        left = height = 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left, height = top + height, 0, 0
            position = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            panels.append({"id": len(panels) + 1, "gridPos": position, **_panel(panel)})
            left, height = left + panel.width, max(height, panel.height)
        top += height
    return panels


def _panel(panel: Panel) -> JsonObject:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "targets": [_target(query, index, panel.kind) for index, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _target(query: Query, index: int, kind: str) -> JsonObject:
    return {
        "refId": chr(ord("A") + index),
        "datasource": _DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "instant": kind != "timeseries",
        "range": kind == "timeseries",
    }


def _defaults(panel: Panel) -> JsonObject:
    steps: list[JsonObject] = [{"color": "green", "value": None}]
    if panel.warn_above is not None:
        steps.append({"color": "orange", "value": panel.warn_above})
    defaults: JsonObject = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.minimum is not None:
        defaults["min"] = panel.minimum
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.kind == "timeseries":
        custom: JsonObject = {"lineWidth": 2, "showPoints": "auto", "spanNulls": False}
        if panel.stacked:
            custom |= {"fillOpacity": 30, "stacking": {"mode": "normal", "group": "A"}}
        if panel.warn_above is not None:
            custom["thresholdsStyle"] = {"mode": "dashed"}
        defaults["custom"] = custom
    else:
        defaults["color"] = {"mode": "thresholds"}
    return defaults


def _options(panel: Panel) -> JsonObject:
    reduce: JsonObject = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "stat":
        return {"reduceOptions": reduce, "textMode": panel.text_mode, "colorMode": "value", "graphMode": "none"}
    if panel.kind == "bargauge":
        return {"reduceOptions": reduce, "orientation": "horizontal", "displayMode": "basic"}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _datasource_variable() -> JsonObject:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}


def _run_variable() -> JsonObject:
    expression = "label_values(awac_replay_phase, run)"
    return {
        "name": "run_id",
        "label": "Run",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": expression, "refId": "run_id"},
        "refresh": 2,  # whenever the time range changes, so that a new run appears
        "sort": 2,  # names end in the time: the newest run of a name comes first
        "multi": False,
        "includeAll": False,
        "hide": 0,
    }


def _link(title: str, uid: str) -> JsonObject:
    return {
        "title": title,
        "type": "link",
        "icon": "dashboard",
        "tooltip": "",
        "tags": [],
        "asDropdown": False,
        "url": f"/d/{uid}",
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
    }
