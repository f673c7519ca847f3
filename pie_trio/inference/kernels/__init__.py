"""The operations of a step on the CPU, twice: in torch, and in C++ where that was built."""
