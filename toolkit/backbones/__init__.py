"""Pretrained networks by name, cut into ordered stages, with their preprocessing and their weights."""
