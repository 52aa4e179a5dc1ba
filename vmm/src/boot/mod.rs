//! From a kernel image to a vCPU that is about to execute its first instruction.
