"""Small parts that the examples share: generated RGB-T sequences and a small trained tracker."""
