"""Engines of OpenVINO, on processors and on Intel's graphics and NPUs."""
