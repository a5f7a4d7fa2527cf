"""`mlic weights`: the published weights of architectures, on this machine and on the network."""
