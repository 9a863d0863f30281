"""How sure numbers are: rankings, parts of metrics, the bootstrap over patients."""
