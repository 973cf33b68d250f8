"""The parts of models: feeds, nets, heads, orders, quantizers, norms, conditions."""
