"""The methods of eDiff-I (arXiv:2211.01324): noise, expert trees, denoisers, samplers.

Depends on torch, numpy and safetensors only; the encoders need transformers and open_clip when they
are loaded.
"""
