"""What is called from outside: the command line, sweeps, doctor, notebook parameters."""
