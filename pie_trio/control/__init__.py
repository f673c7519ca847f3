"""The control layer: decisions on plain data; no torch, no wasmtime."""
