"""From registry entries to the model directory that Triton reads, and the checks that Triton does not make."""
