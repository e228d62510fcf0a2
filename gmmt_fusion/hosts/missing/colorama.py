"""colorama: text without colours."""


class Plain:
    """Every colour and every style is an empty string."""

    def __getattr__(self, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        return ""


Fore = Back = Style = Plain()


def init(*args: object, **kwargs: object) -> None:
    """There is nothing to prepare."""


deinit = reinit = just_fix_windows_console = init
