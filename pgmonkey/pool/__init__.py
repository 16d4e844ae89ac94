"""Connections: handles, checkouts, and the pools behind them."""
