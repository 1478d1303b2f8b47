"""The command line: `torchwatt run | doctor | show | demo | attribute`."""
