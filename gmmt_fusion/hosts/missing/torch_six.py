"""torch._six, which PyTorch 2 does not have any more."""

import collections.abc
from math import inf, nan

string_classes = (str, bytes)
int_classes = int
container_abcs = collections.abc

__all__ = ["container_abcs", "inf", "int_classes", "nan", "string_classes"]
