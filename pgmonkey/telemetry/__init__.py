"""What happened, as events and as numbers: structlog events, status records, Prometheus metrics."""
