"""Safetensors files and folders of shards."""
