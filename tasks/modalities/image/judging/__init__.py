"""How images are judged: a feature network, numbers of samples, of reconstructions and of likelihoods, pictures."""
