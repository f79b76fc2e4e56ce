"""Real processes of a real installation, killed hundreds of times: `make chaos`. Not part of `make test`."""
