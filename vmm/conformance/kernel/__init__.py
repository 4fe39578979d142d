"""The kernel as a witness: runs scripts on /dev/kvm. Imports `language` and floor 1."""
