"""The inference layer: models, the KV cache and what samples from them. No trio here.

Import from the modules: :mod:`~pie_trio.inference.engine` needs torch, while
:mod:`~pie_trio.inference.fake` does not, and re-exporting either would load both.
"""
