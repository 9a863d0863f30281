"""Tables of published weights, one file per project; ``voco.weights.sources`` collects them."""
