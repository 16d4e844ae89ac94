"""Telemetry: structlog events, status records and Prometheus metrics."""
