"""The demonstration of `make run`: a real PostgreSQL, three databases, passwords that rotate."""
