"""The control plane for fleets of NVIDIA Triton Inference Server replicas."""

__version__ = "0.1.0"
