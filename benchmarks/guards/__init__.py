"""Faults planted into the built-in loop, and healthy runs beside them: do the guards see what they must?"""
