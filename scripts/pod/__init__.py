"""The shipped manifests, played by podman: `scripts/test-pod`."""
