"""Weakly-supervised semantic segmentation from image-level labels, one small library for all notebooks."""
