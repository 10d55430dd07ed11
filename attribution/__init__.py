"""How it is computed: pure functions of arrays and records. No Beam, no command line."""
