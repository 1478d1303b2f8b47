"""The command line `torchwatt`: parser, commands, and the runner of scripts."""
