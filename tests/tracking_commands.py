"""The command `track` on a tiny tracker."""

from gmmt_fusion.cli import main


def command(out, *arguments, tracker="Follower"):
    return main(
        ["track", "--tracker", f"tiny_trackers:{tracker}", "--out", str(out), *map(str, arguments)]
    )
