"""The only place that knows wasmtime: fibers, values, WASI, the compiled cache."""
