"""Steering tokens and adapters trained on a target table: data, losses, loop."""
