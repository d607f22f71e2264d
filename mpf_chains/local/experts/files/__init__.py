"""Adapters, models and pairs on disk: safetensors only, each tensor checked before it is used."""
