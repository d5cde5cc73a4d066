"""What runs beside a run: Prometheus and Grafana."""
