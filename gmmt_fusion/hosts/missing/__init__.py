"""Stand-ins for packages that hosts use a part of: each module here does the work of that part.

A host finds them, under the package's own name, where the package is not installed: see
`gmmt_fusion.hosts.stand_ins`.
"""
