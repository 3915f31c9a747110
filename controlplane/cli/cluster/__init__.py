"""What `ctl` does where the system is a release on Kubernetes."""
