"""How the models run on a machine: memory estimate, compiled engine, offloading, step caching."""
