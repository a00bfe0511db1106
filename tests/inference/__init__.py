"""Tests of the inference-mode-aware wrapper; a package, so that its file names may repeat those of other folders."""
