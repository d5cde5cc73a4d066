"""Our Grafana dashboards, as typed Python."""
