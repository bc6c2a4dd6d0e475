"""The parts of the GPU benchmark: each knows one question and answers it as JSON."""
