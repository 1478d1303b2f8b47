"""Commands that need no running program: attribution of saved traces, repricing, calibration, replay of layers."""
